"""Inner-loop feedback: some blocks are run twice in a call, whose answer then looks ahead."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from .block_lists import HIDDEN, TEXT, Blocks, plain
from .feedback_block import TIMESTEP, Feedback, Loop, load_feedback, read_trained
from .moment import Moment, Work
from .site import Site
from .skipping import require_no_cache


@dataclass(frozen=True)
class Time:
    """How the blocks of a class are told the time.

    Args:
        argument: of a block, that M gets another one for.
        embedder: makes it (or a tuple that begins with it) of the network's time, its first argument; empty where the
            blocks get the time itself.
    """

    argument: str
    embedder: str = ""


TIMES = {
    "DiTTransformer2DModel": Time(TIMESTEP),
    "PixArtTransformer2DModel": Time(TIMESTEP, "adaln_single"),
    "SD3Transformer2DModel": Time("temb", "time_text_embed"),
}


@dataclass(frozen=True)
class ILF:
    """Inner-loop feedback: with f = loop(f_in), the loop is run again from f_in, and its rerun is what goes on.

    g = M(f), h = f_in; for each block l of the loop: h = B_l(h + s_l g). M is one more block and s a number for each
    block of the loop; `epd distill-feedback` learns both so that the call answers with the mean slope of the step
    ahead of it. Such a call evaluates D + L + 1 of D blocks, the head before the loop once. With s = 0 nothing changes.
    In DiT, PixArt and SD3, of which the picture's tokens are fed back. For solvers that ask once a step, as Euler and
    DDIM do: a multistep rule corrects a second time what the slope holds already, unless its table was learned so.

    Args:
        module: file of safetensors that `epd distill-feedback` wrote.
        steps: solver steps with feedback, from 0; None: those that it was learned for.

    Raises:
        ValueError: for no file or a negative step.

    Reference: arXiv 2501.13107.
    """

    module: str
    steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.module:
            raise ValueError("module = '' names no file: give one that `epd distill-feedback` wrote")
        if self.steps is None:
            return
        object.__setattr__(self, "steps", tuple(sorted({int(n) for n in self.steps})))
        if not self.steps or self.steps[0] < 0:
            raise ValueError(f"steps = {list(self.steps)} must be solver steps from 0: give one at least, or None")

    def attach(self, site: Site) -> Feeding:
        """Hooks the loop's blocks; the module stays outside of the network."""
        loop = read_trained(self.module).loop
        require_no_cache(site.only)
        blocks = blocks_of(site.only)
        kind = type(plain(site.only)).__name__
        if (kind, len(blocks)) != (loop.network, loop.depth):
            raise ValueError(
                f"{self.module} was learned for a {loop.network} of {loop.depth} blocks, this is a {kind} of "
                f"{len(blocks)}: learn one for it with `epd distill-feedback`"
            )
        feedback = load_feedback(self.module, blocks.modules[loop.begin])
        return Feeding(site, blocks, feedback, loop, loop.steps if self.steps is None else self.steps)

    def plan(self, calls: Sequence[Moment]) -> list[Work]:
        """More than 1 of the blocks in the steps with feedback."""
        loop = read_trained(self.module).loop
        steps = loop.steps if self.steps is None else self.steps
        return [Work(blocks=loop.share if now.step in steps else 1.0) for now in calls]


def blocks_of(network: Module) -> Blocks:
    """The blocks of a network that can have feedback.

    Raises:
        ValueError: for another.
    """
    whole = plain(network)
    if not any(kind.__name__ in TIMES for kind in type(whole).__mro__):
        raise ValueError(f"feedback is not known for {type(whole).__name__}: it works in {', '.join(TIMES)}")
    return Blocks(whole)


class Running(threading.local):
    """What a thread's call of the network did so far.

    Args:
        told: arguments of the embedder of times.
        calls: of the loop's blocks, (place, arguments by name), in order.
        output: of the last of them.
        again: whether the loop is being run again.
    """

    told: tuple[tuple[Any, ...], dict[str, Any]] | None
    calls: list[tuple[int, dict[str, Any]]]
    output: Any
    again: bool

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets a call."""
        self.told, self.calls, self.output, self.again = None, [], None, False


class Feeding:
    """See `Live`. Nothing is kept from call to call.

    Args:
        feedback: its module, which may be in training.
        steps: solver steps with feedback.
    """

    def __init__(self, site: Site, blocks: Blocks, feedback: Feedback, loop: Loop, steps: Sequence[int]) -> None:
        if told := loop.dear():
            warnings.warn(told, stacklevel=2)
        self._site, self._blocks, self._feedback, self._loop = site, blocks, feedback, loop
        self._steps, self._running, self._warned = frozenset(steps), Running(), False
        network = plain(site.only)
        self._time = next(TIMES[kind.__name__] for kind in type(network).__mro__ if kind.__name__ in TIMES)
        self._embedder = network.get_submodule(self._time.embedder) if self._time.embedder else None
        if self._embedder is not None:
            site.before(self._embedder, self._told)
        for place in range(loop.begin, loop.begin + loop.count):
            site.before(blocks.modules[place], functools.partial(self._enters, place))
            site.after(blocks.modules[place], functools.partial(self._leaves, place))

    def begin(self) -> None:
        self._running.clear()

    def before(self, now: Moment) -> Work | None:
        self._running.clear()  # of a call that was interrupted
        if now.steps != self._loop.num_steps and not self._warned:
            self._warned = True
            warnings.warn(
                f"the feedback was learned for {self._loop.num_steps} solver steps, this run has {now.steps}: its "
                "answers look ahead by other steps",
                stacklevel=2,
            )
        return Work(blocks=self._loop.share) if now.step in self._steps else None

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        self._running.clear()
        return slopes

    def stored(self) -> int:
        return 0

    def _idle(self) -> bool:
        now = self._site.now
        return now is None or now.step not in self._steps or self._running.again

    def _told(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._idle():
            self._running.told = (args, kwargs)

    def _enters(self, place: int, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._idle():
            return
        running, call = self._running, self._blocks.arguments(place, args, kwargs)
        if place == self._loop.begin:
            running.calls = []
        elif running.calls and call[HIDDEN] is not self._blocks.image(running.output):
            raise ValueError(
                f"something is added between blocks {place - 1} and {place}, which a loop would leave out: run without "
                "ControlNet, or without feedback"
            )
        running.calls.append((place, call))

    def _leaves(self, place: int, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
        if self._idle():
            return None
        running = self._running
        running.output = output
        if place < self._loop.begin + self._loop.count - 1:
            return None
        calls, running.calls, running.output = running.calls, [], None
        if [called for called, _ in calls] != list(range(self._loop.begin, place + 1)):
            raise ValueError(
                f"the network leaves out blocks of the loop {self._loop.begin} to {place}: run without skipped layers, "
                "or without feedback"
            )
        running.again = True
        try:
            return self._looped(calls, self._blocks.image(output))
        finally:
            running.again = False

    def _looped(self, calls: list[tuple[int, dict[str, Any]]], image: Tensor) -> Any:  # noqa: ANN401
        """The loop's second output."""
        first, argument = calls[0][1], self._time.argument
        told = {**first, HIDDEN: image, argument: self._ahead(first[argument])}
        fed = self._blocks.image(self._feedback(told))
        hidden, text, output = first[HIDDEN], first.get(TEXT), None
        for scale, (place, call) in zip(self._feedback.scale, calls, strict=True):
            added = (scale.to(fed.device) * fed).to(hidden.dtype)
            output = self._blocks.modules[place](**{**call, HIDDEN: hidden + added, TEXT: text})
            hidden = self._blocks.image(output)
            text = text if hidden is output else output[0]
        return output

    def _ahead(self, argument: Any) -> Any:  # noqa: ANN401
        """What M is told of the time."""
        if self._embedder is None:
            return self._feedback.ahead_of(argument)
        told = self._running.told
        assert told is not None, "times are embedded before the blocks"
        args, kwargs = told
        if args:
            args = (self._feedback.ahead_of(args[0]), *args[1:])
        else:
            kwargs = {**kwargs, TIMESTEP: self._feedback.ahead_of(kwargs[TIMESTEP])}
        made = self._embedder.forward(*args, **kwargs)  # without hooks: it is no call of the network's
        return made[0] if isinstance(made, tuple) else made
