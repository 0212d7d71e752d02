"""A rule driven from outside: the pipeline's own network calls answer what the rule's generator asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.preconditioning import Preconditioning
from ..solvers.registry import RULES, SIMPLEST, RuleSettings, make_rule
from ..solvers.walk import Ask, History, Rule, Steps, expand, plan


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
        c_skip, c_out, c_in, timestep: (K,) each, at the noise levels that the network is told.
    """

    step: int
    ask: int
    slots: tuple[int, ...]
    sigma: tuple[float, ...]
    c_skip: tuple[float, ...]
    c_out: tuple[float, ...]
    c_in: tuple[float, ...]
    timestep: tuple[float, ...]

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
    coefficients = [c.tolist() for c in precondition(ask.told)]
    width = len(ask.sigma)
    for slots in [tuple(range(width))] if batched else [(k,) for k in range(width)]:
        sigma, *rest = (tuple(float(column[k]) for k in slots) for column in (ask.sigma, *coefficients))
        yield Call(step, index, slots, sigma, *rest)


class Run:
    """One trajectory. `points` (K, B, *S) are what the next call evaluates; `advance` takes the slopes there.

    A run may begin anywhere (image-to-image). In the middle of a step it goes on by Euler steps to the step's end. A
    rule that remembers slopes finds none then: the first slope stands in for all of them.

    Args:
        rule: a hand-made one or a table's.
        levels: (N+1,) float64 on the CPU, so that no coefficient is ever read back from a device.
        calls: of `calls_of`.
        begin: index of the first call.
        columns: remembered slopes that the rule cannot do without.
    """

    def __init__(self, rule: Rule, levels: Tensor, calls: Sequence[Call], begin: int = 0, columns: int = 0) -> None:
        self.index = begin
        self.points: Tensor | None = None
        self._rule, self._levels, self._calls, self._columns = rule, levels, calls, columns
        self._floor = levels.tolist()
        self._midway = not calls[begin].opens
        self._cold = not self._midway and calls[begin].step > 0 and columns > 0
        self._history: History = ()
        self._asking: Steps | None = None
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
        return 1 if self._midway or self._cold else len(self.call.slots)

    @property
    def ahead(self) -> bool:
        """The first call is not at the state that the run starts from, or not only there: `open` makes its points."""
        return self.points is None and not self._midway and not self._cold and not self._only_state(self.call)

    def _at_state(self, call: Call) -> bool:
        return call.opens and call.sigma[0] == self._floor[call.step]

    def _only_state(self, call: Call) -> bool:
        return self._at_state(call) and len(call.slots) == 1

    def open(self, x: Tensor) -> Tensor:
        """The points of the first call, from the state (B, *S)."""
        self.points = self._first_points(x)
        return self.points

    def _first_points(self, x: Tensor) -> Tensor:
        call = self.call
        if self._midway or self._cold or self._only_state(call):
            self._x = x
            return x[None]
        return self._question(x).points[call.slots[0] : call.slots[-1] + 1]

    def _question(self, x: Tensor) -> Ask:
        """Starts the step from x: its first question."""
        n = self.call.step
        self._x, self._answers = x, []
        self._asking = self._rule(x, self._levels[n], self._levels[n + 1], n, self._history)
        self._ask = next(self._asking)
        return self._ask

    def advance(self, points: Tensor, slopes: Tensor) -> Tensor:
        """The points of the next call, or the last state as (1, B, *S).

        Args:
            points: (K, B, *S) where the call was made: `self.points`, unless somebody changed the state in between.
            slopes: (K, B, *S) there.
        """
        call = self.call
        if self._midway:
            return self._euler(call, points[0], slopes[0])
        if self._at_state(call):
            # Again, from the state as it came back: callbacks and inpainting change it between calls.
            if self._cold:
                self._history = (slopes[0],) * self._columns
                # A fan was not evaluated: with the state's slope in its place this is an Euler step.
                slopes = slopes[:1].expand(len(call.slots), *slopes.shape[1:])
                self._cold = False
            self._question(points[0])
        self._answers += slopes.unbind()
        if self._ask is not None and len(self._answers) == len(self._ask.points):
            self._answer()
        return self._onwards()

    def _answer(self) -> None:
        """Everything that the rule asked is known: it asks on, or its step ends."""
        assert self._asking is not None
        slopes, self._answers = torch.stack(self._answers), []
        try:
            self._ask = self._asking.send(slopes)
        except StopIteration as stop:
            mean, self._history = stop.value
            n = self.call.step
            self._x = self._x + expand(self._levels[n + 1] - self._levels[n], self._x) * mean
            self._asking = self._ask = None

    def _onwards(self) -> Tensor:
        self.index += 1
        if self.finished:
            self.points, self._history = None, ()
            return self._x[None]
        call = self.call
        if call.opens:
            self.points = self._first_points(self._x)
        else:
            assert self._ask is not None
            self.points = self._ask.points[call.slots[0] : call.slots[-1] + 1]
        return self.points

    def _euler(self, call: Call, x: Tensor, slope: Tensor) -> Tensor:
        """From a point inside a step to the step's next point, or to its end."""
        following = self._calls[self.index + 1] if self.index + 1 < len(self._calls) else None
        inside = following is not None and following.step == call.step
        target = following.sigma[0] if following is not None and inside else self._floor[call.step + 1]
        self._x = x + (target - call.sigma[0]) * slope
        self._midway = inside
        self._cold = not inside and self._columns > 0
        if not inside:
            return self._onwards()
        self.index += 1
        self.points = self._x[None]
        return self.points
