"""A rule driven from outside: the pipeline's own network calls answer what the rule's generator asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoisers.preconditioning import Preconditioning
from ..solvers.late import late_start
from ..solvers.registry import RULES, SIMPLEST, RuleSettings, make_rule
from ..solvers.walk import Ask, Restart, Rule, Site, State, Walk, forward, plan, walk


def named_rule(name: str, order: int | None, levels: Tensor) -> Rule:
    """A hand-made rule for this grid. A last step to sigma 0 is Euler's where the rule would ask there or take its log.

    Raises:
        ValueError: for an order that the rule does not have.
    """
    steps = len(levels) - 1
    rule, last = make_rule(name, RuleSettings(order, num_steps=steps)), make_rule(SIMPLEST)
    if float(levels[-1]) > 0 or RULES[name].reaches_zero:
        return rule
    return lambda x, sigma, sigma_next, n, history: (last if n == steps - 1 else rule)(x, sigma, sigma_next, n, history)


@dataclass(frozen=True)
class Call:
    """One network call, known before anything is sampled; K points in it.

    Args:
        step: of the solver.
        ask: which of the step's questions it answers.
        slots: which points of that question.
        sigma: (K,) where the slopes are defined.
        told: (K,) the noise levels that the network is told.
        c_skip, c_out, c_in, timestep: (K,) each, at those that it is told.
        guidance: (K,) factors of the guidance; none where all are 1.
    """

    step: int
    ask: int
    slots: tuple[int, ...]
    sigma: tuple[float, ...]
    told: tuple[float, ...]
    c_skip: tuple[float, ...]
    c_out: tuple[float, ...]
    c_in: tuple[float, ...]
    timestep: tuple[float, ...]
    guidance: tuple[float, ...] | None = None

    @property
    def opens(self) -> bool:
        """The first call of its step."""
        return self.ask == 0 and self.slots[0] == 0


def calls_of(rule: Rule, levels: Tensor, precondition: Preconditioning, batched: bool) -> list[Call]:
    """The network calls of a whole trajectory: one per question, or one per point when not batched."""
    return [
        call
        for step, asks in enumerate(plan(rule, levels))
        for index, ask in enumerate(asks)
        for call in _calls(step, index, ask, precondition, batched)
    ]


def _calls(step: int, index: int, ask: Ask, precondition: Preconditioning, batched: bool) -> Iterator[Call]:
    coefficients = [c.tolist() for c in (ask.network_sigma, *precondition(ask.network_sigma))]
    width = len(ask.sigma)
    factors = [1.0] * width if ask.guidance is None else ask.guidance.tolist()
    for slots in [tuple(range(width))] if batched else [(k,) for k in range(width)]:
        sigma, *rest = (tuple(float(column[k]) for k in slots) for column in (ask.sigma, *coefficients))
        guidance = tuple(factors[k] for k in slots)
        yield Call(step, index, slots, sigma, *rest, guidance=guidance if {*guidance} != {1.0} else None)


def resumed(
    rule: Rule,
    x: Tensor,
    levels: Tensor,
    calls: Sequence[Call],
    begin: int = 0,
    columns: int = 0,
    consistent: bool = True,
) -> Walk:
    """The walk of a run that may begin at any of its network calls (image-to-image), from the state there.

    In the middle of a step it goes on by Euler steps to the step's end. A rule that remembers slopes finds none when a
    run begins after the first step: see `late_start`; without a hook its network is told the call's own level there.

    Args:
        begin: index of the first call. With 0 the run begins at the first step, which may make no call.
        columns: slopes that the rule remembers.
        consistent: the rule's weights sum to one.
    """
    step = calls[begin].step if begin else 0
    if not calls[begin].opens:
        x = yield from _rest_of_step(x, levels, [call for call in calls[begin:] if call.step == step])
        step += 1
    if step and columns:
        rule = late_start(rule, step, columns, consistent)
    return (yield from walk(rule, x, levels, step))


def _rest_of_step(x: Tensor, levels: Tensor, calls: Sequence[Call]) -> Walk:
    """Euler steps through the noise levels of the calls that are left of a step, to its end."""
    end = levels[calls[0].step + 1]
    points = torch.stack([*torch.tensor([call.sigma[0] for call in calls], dtype=levels.dtype).unbind(), end])

    def as_planned(event: Ask | State) -> Ask | State:
        if isinstance(event, State):
            return event  # inside a step, where nobody looks for one
        call = calls[event.site.step]
        return replace(event, site=Site(call.step, call.ask))

    return (yield from forward(walk(make_rule(SIMPLEST), x, points), None, as_planned))


class PipelineWalk:
    """One walk, answered by a pipeline's network calls.

    `points` (K, B, *S) are what the next call evaluates; `advance` takes the slopes there.

    Args:
        rule: a hand-made one or a table's.
        levels: (N+1,) float64 on the CPU, so that no coefficient is ever read back from a device.
        calls: of `calls_of`.
        begin: index of the first call, see `resumed`.
        columns, consistent: see `resumed`.
    """

    def __init__(
        self,
        rule: Rule,
        levels: Tensor,
        calls: Sequence[Call],
        begin: int = 0,
        columns: int = 0,
        consistent: bool = True,
    ) -> None:
        self.index = begin
        self.points: Tensor | None = None
        self._start = lambda x: resumed(rule, x, levels, calls, begin, columns, consistent)
        self._calls, self._starts_of_steps = calls, levels.tolist()
        self._midway = calls[begin].step if not calls[begin].opens else None
        self._alone = self._midway is not None or (begin > 0 and calls[begin].step > 0 and columns > 0)
        self._callless = begin == 0 and calls[0].step > 0  # steps are taken before the first call
        self._walk: Walk | None = None
        self._ask: Ask | None = None
        self._answers: list[Tensor] = []

    @property
    def call(self) -> Call:
        """The call that `advance` waits for."""
        return self._calls[self.index]

    @property
    def finished(self) -> bool:
        return self.index == len(self._calls)

    @property
    def rows(self) -> int:
        """K, points of the next call."""
        if self.points is not None:
            return len(self.points)
        return 1 if self._alone else len(self.call.slots)

    @property
    def moves_first_call(self) -> bool:
        """The first call is not at the state that the run starts from, or not only there: `open` makes its points."""
        only_state = self._at_state(self.call) and len(self.call.slots) == 1 and not self._callless
        return self.points is None and not self._alone and not only_state

    @property
    def at_state(self) -> bool:
        """Whether the first point of the next call is the solver's own state."""
        return self._at_state(self.call)

    def _at_state(self, call: Call) -> bool:
        """Whether the call's first point is the state itself."""
        return self._midway == call.step or (call.opens and call.sigma[0] == self._starts_of_steps[call.step])

    def open(self, x: Tensor) -> Tensor:
        """The points of the first call, from the state (B, *S)."""
        self._walk = self._start(x)
        self._go_on(None)
        return self._next_points(x[None])

    def advance(self, points: Tensor, slopes: Tensor) -> Tensor:
        """The points of the next call, or the last state as (1, B, *S).

        Args:
            points: (K, B, *S) where the call was made: `self.points`, unless somebody changed the state in between.
            slopes: (K, B, *S) there.
        """
        # A run that began with one slope for a whole fan has calls left for the fan's other points: nobody asks there.
        if self._expects(self.call):
            if points is not self.points and self._at_state(self.call):
                self._go_on(Restart(points[0]))  # callbacks and inpainting change the state between calls
            self._answers += slopes.unbind()
            assert self._ask is not None
            if len(self._answers) == len(self._ask.points):
                answer, self._answers = torch.stack(self._answers), []
                self._go_on(answer)
        self.index += 1
        return self._next_points(points)

    def _expects(self, call: Call) -> bool:
        return self._ask is not None and self._ask.site == Site(call.step, call.ask)

    def _go_on(self, reply: Tensor | Restart | None) -> None:
        """To the next question, or to the end."""
        assert self._walk is not None, "open comes first"
        while True:
            try:
                event = self._walk.send(reply)
            except StopIteration as stop:
                self._ask, self._last = None, stop.value
                return
            if isinstance(event, Ask):
                self._ask = event
                return
            reply = None

    def _next_points(self, present: Tensor) -> Tensor:
        if self.finished:
            self.points = None
            return self._last[None]
        self.points = present
        if self._expects(self.call):
            assert self._ask is not None
            points, slots = self._ask.points, self.call.slots
            self.points = points if len(points) == 1 else points[slots[0] : slots[-1] + 1]
        return self.points
