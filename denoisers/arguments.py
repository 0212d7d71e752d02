"""Which of a network's arguments are its state and its time: the one place that knows their names."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

STATE_NAMES = ("sample", "hidden_states", "x")
TIME_NAMES = ("timestep", "timesteps", "t")
FURTHER_STATE = re.compile(r"(audio|sound|action|vision|clean)_(hidden_states|latents)")
FURTHER_TIME = re.compile(r"r_timestep|timestep_r|target_timestep|(audio|sound|action|vision|clean)_timesteps?")
Positional = tuple[Any, ...]
Keywords = dict[str, Any]
Key = str | int


class NetworkArguments:
    """The arguments of one network call, whose state and time can be read and replaced.

    Networks take the state first and the time second, where they are not passed by name.

    Args:
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Raises:
        ValueError: when the call has no state or no time.
    """

    finish: Callable[[Any], Any] | None = None  # what the call returns -> what its caller gets

    def __init__(self, args: Positional, kwargs: Keywords) -> None:
        self._values: dict[Key, Any] = {**dict(enumerate(args)), **kwargs}
        self._count = len(args)
        self._state, self._time = self._key(STATE_NAMES, 0), self._key(TIME_NAMES, 1)

    def _key(self, names: tuple[str, ...], place: int) -> Key:
        for name in names:
            if self._values.get(name) is not None:
                return name
        if place < self._count:
            return place
        raise ValueError(f"a network was called without {names[0]!r}, by this or another name: it is not supported")

    @property
    def state(self) -> Any:  # noqa: ANN401 - a tensor, or a list with one tensor per sample
        """The noisy samples."""
        return self._values[self._state]

    @state.setter
    def state(self, value: Any) -> None:  # noqa: ANN401
        self._values[self._state] = value

    @property
    def time(self) -> Any:  # noqa: ANN401 - a tensor or a number
        """What the network is told of the noise level."""
        return self._values[self._time]

    @time.setter
    def time(self, value: Any) -> None:  # noqa: ANN401
        self._values[self._time] = value

    def change_conditioning(self, change: Callable[[str, Any], Any]) -> None:
        """Replaces every argument but state and time by `change(name, value)`; positional ones have no name."""
        for key, value in self._values.items():
            if key not in (self._state, self._time):
                self._values[key] = change(key if isinstance(key, str) else "", value)

    def copy(self) -> NetworkArguments:
        """The same arguments, to be changed on their own."""
        return NetworkArguments(*self.pair())

    def take(self, other: NetworkArguments) -> None:
        """Replaces all of them by those of another call of the network; `finish` stays."""
        self._values = dict(other._values)

    def pair(self) -> tuple[Positional, Keywords]:
        """(args, kwargs), as a forward pre-hook returns them."""
        named = {key: value for key, value in self._values.items() if isinstance(key, str)}
        return tuple(self._values[place] for place in range(self._count)), named


def second_state(forward: Callable[..., Any]) -> str:
    """The name of a second state or time that a network takes beside the first; empty when it takes none."""
    names = [name for name in inspect.signature(forward).parameters]
    return next((n for n in names if FURTHER_STATE.fullmatch(n) or FURTHER_TIME.fullmatch(n)), "")


def takes_lists(forward: Callable[..., Any]) -> bool:
    """Whether a network's state is declared as a list with one tensor per sample."""
    first = next(iter(inspect.signature(forward).parameters.values()), None)
    return first is not None and typing.get_origin(first.annotation) is list
