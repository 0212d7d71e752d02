"""The hook that turns one call of a pipeline's network into the call of a whole fan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .frames import TIMES
from .probe import SAMPLE, TIMESTEP
from .scheduler import EPDScheduler, Fan

# Positions, the same for every sample: their length may happen to equal the number of rows.
SHARED = frozenset(
    ("img_ids", "txt_ids", "image_rotary_emb", "rotary_emb", "freqs_cis", "controlnet_mode", "ip_adapter_masks")
)
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Watch = Callable[[Tensor], None]


class FanHook:
    """A forward pre-hook with keyword arguments, for every network that the pipeline's loop calls.

    In a fan's call the state has K rows per sample, sample-major, so each row of conditioning is repeated K times and
    each row is told its own timestep. Where the first call is a fan, its points take the place of the initial latents.

    Args:
        scheduler: says what the next call is.
        watch: sees the state of the first network call of each run.
    """

    def __init__(self, scheduler: EPDScheduler, watch: Watch) -> None:
        self._scheduler, self._watch = scheduler, watch
        self._time = ""

    @torch.compiler.disable  # it reads Python state that changes with every call; on a compiled wrapper it is outside
    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        names = _names(args)
        given: dict[str, Any] = {**dict(zip(names, args, strict=True)), **kwargs}
        state, time = _first(given, SAMPLE, names, 0), _first(given, TIMESTEP, names, 1)
        if self._scheduler.step_index is None:
            self._watch(given[state])
        fan = self._scheduler.fan
        if fan is None:
            return None
        before = len(given[state]) if fan.ahead else len(given[state]) // fan.width
        if fan.ahead:
            given[state] = self._scheduler.ahead(given[state])
        if fan.width > 1:
            told = given.pop(time)
            frames = given[state].shape[2] if given[state].ndim == 5 else 1
            rest = {k: _repeated(k, v, (before, before * frames), fan.width) for k, v in given.items() if k != state}
            given = {**rest, state: given[state], time: self._told(told, fan, len(given[state]))}
        return tuple(given[n] for n in names), {k: given[k] for k in kwargs}

    def _told(self, told: Tensor, fan: Fan, rows: int) -> Tensor:
        """Each row's own time, in the units that this pipeline tells its network."""
        count = float(len(self._scheduler))
        if not self._time:
            self._time = _units(float(told.flatten()[-1]), fan.first, count, told.dtype)  # read once per `enable`
        own = TIMES[self._time](fan.timesteps.to(told.device), count).repeat(rows // fan.width)
        if told.ndim == 2:  # one time per token, some of them 0: those of a given first frame
            ratio = (fan.timesteps.to(told.device) / fan.first).repeat(rows // fan.width)
            told = told if len(told) == rows else told.repeat_interleave(fan.width, 0)
            return (told * ratio[:, None]).to(told.dtype)
        return own.to(told.dtype)


def _units(seen: float, given: float, count: float, dtype: torch.dtype) -> str:
    errors = {name: abs(float(f(torch.tensor(given, dtype=torch.float64), count)) - seen) for name, f in TIMES.items()}
    best = min(errors, key=lambda name: errors[name])
    if errors[best] > 4 * torch.finfo(dtype).eps * max(1.0, abs(seen)):
        raise ValueError(
            f"the scheduler's timestep {given:g} reaches the network as {seen:g}, none of {', '.join(TIMES)}: "
            "use epd.enable(pipe, table, parallel=False)"
        )
    return best


def _names(args: tuple[Any, ...]) -> list[str]:
    """Positional arguments: networks take the state first and the timestep second."""
    return [("#state", "#time")[i] if i < 2 else f"#{i}" for i in range(len(args))]


def _first(given: Mapping[str, Any], wanted: tuple[str, ...], names: list[str], place: int) -> str:
    for name in wanted:
        if name in given:
            return name
    if place < len(names):
        return names[place]
    raise ValueError(f"a network was called without {wanted[0]!r}: epd.enable does not know this pipeline's network")


def _repeated(name: str, value: Any, rows: tuple[int, int], width: int) -> Any:  # noqa: ANN401 - any argument
    """Conditioning with a row per sample, or per frame of each sample, at any depth, for the points of each sample."""
    if name in SHARED:
        return value
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) not in rows:
            return value
        return value.unflatten(0, (rows[0], -1)).repeat_interleave(width, 0).flatten(0, 1)
    if isinstance(value, dict):
        return {k: _repeated(k, v, rows, width) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_repeated(name, v, rows, width) for v in value)
    return value
