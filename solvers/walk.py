"""The one walk along a trajectory: a rule asks for slopes, its driver answers, the state moves.

Every driver runs this generator: `solve` answers with a denoiser, a diffusers pipeline with its own network calls,
the k-diffusion sampler with a k-diffusion model, `plan` with zeros. The state is updated here and nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..denoisers.protocol import expand
from .schedules import checked_sigmas


class Run:
    """One walk, told apart from every other one by being another object.

    Args:
        sigmas: (N+1,) or (N+1, B).
    """

    def __init__(self, sigmas: Tensor) -> None:
        self._sigmas = sigmas

    @property
    def steps(self) -> int:
        """N."""
        return len(self._sigmas) - 1

    @functools.cached_property
    def levels(self) -> list[float]:
        """N+1 noise levels, the first sample's where each has its own. Reading them waits for the device, once."""
        first = self._sigmas if self._sigmas.ndim == 1 else self._sigmas[:, 0]
        return first.detach().tolist()


@dataclass(frozen=True)
class Site:
    """Where on a trajectory a question is asked; the point index is the row axis of the question itself.

    Args:
        step: solver step, 0 to N - 1.
        stage: which of the step's questions, from 0.
        run: whose question it is; none outside of a walk. Equal places of two runs are equal.
    """

    step: int
    stage: int
    run: Run | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Ask:
    """A question: the slopes at K points that are independent of each other, so that one network call can answer.

    Args:
        points: (K, B, *S).
        sigma: (K,), or (K, B) when each sample has its own noise levels: where the slope is defined (the divisor),
            float64.
        sigma_scale: same shape as sigma: the network gets sigma * sigma_scale as its noise level; None is 1.
        site: where on the trajectory; `walk` fills it in.
        guidance: same shape as sigma: factors of the model's own guidance scale; None is 1, of any model.

    Raises:
        ValueError: for a sigma, sigma_scale or guidance of another shape.
    """

    points: Tensor
    sigma: Tensor
    sigma_scale: Tensor | None = None
    site: Site = Site(0, 0)
    guidance: Tensor | None = None

    def __post_init__(self) -> None:
        # (K,) beside (K, B) would be multiplied along the wrong axis, silently where B = K.
        scale, shape = self.sigma if self.sigma_scale is None else self.sigma_scale, self.sigma.shape
        if shape != scale.shape or shape != self.points.shape[: len(shape)]:
            raise ValueError(
                f"sigma has shape {tuple(self.sigma.shape)} and sigma_scale {tuple(scale.shape)} for points of shape "
                f"{tuple(self.points.shape)}: both must be (K,) = {tuple(self.points.shape[:1])} or (K, B) = "
                f"{tuple(self.points.shape[:2])}"
            )
        if self.guidance is not None and self.guidance.shape != self.sigma.shape:
            raise ValueError(
                f"guidance has shape {tuple(self.guidance.shape)}, needed is that of sigma, {tuple(self.sigma.shape)}"
            )

    def placed(self, site: Site) -> Ask:
        """The same question, asked there."""
        out = object.__new__(Ask)  # what it is made of was checked
        out.__dict__.update(self.__dict__, site=site)
        return out

    @property
    def network_sigma(self) -> Tensor:
        """The noise levels that the network gets: sigma * sigma_scale, shaped like sigma, float64."""
        return self.sigma if self.sigma_scale is None else self.sigma * self.sigma_scale


@dataclass(frozen=True)
class State:
    """The state (B, *S) after `step` solver steps."""

    step: int
    x: Tensor


@dataclass(frozen=True)
class Restart:
    """An answer that puts another state (B, *S) in the place of the present one: the step begins again from there."""

    x: Tensor


Answer: TypeAlias = Callable[[Ask], Tensor]  # slopes (K, B, *S) at the K points of a question

# A rule says which mean slope holds over [sigma, sigma']: it yields questions, receives slopes, and returns (mean
# slope, history for the next step). The history is the rule's own; nobody else looks inside.
History: TypeAlias = tuple[Any, ...]
Steps: TypeAlias = Generator[Ask, Tensor, tuple[Tensor, History]]
Rule: TypeAlias = Callable[[Tensor, Tensor, Tensor, int, History], Steps]
Walk: TypeAlias = Generator[Ask | State, Tensor | Restart | None, Tensor]


def walk(rule: Rule, x: Tensor, sigmas: Tensor, begin: int = 0, history: History = ()) -> Walk:
    """Walks along a trajectory, x_{n+1} = x_n + (sigma_{n+1} - sigma_n) * mean slope, as a generator.

    It yields an `Ask` for every question and expects slopes (K, B, *S), or a `Restart`; after every step it yields the
    new `State` and expects None, or a `Restart` that replaces it. It returns the last state. Nothing waits for a
    device. Reference: arXiv 2206.00364, Eq. 1 with sigma as time.

    Args:
        x: the state (B, *S) at sigmas[begin].
        sigmas: (N+1,), or (N+1, B) when each sample has its own; float64, beside the state.
        begin: the first step.
        history: what the rule remembers of the steps before `begin`.
    """
    levels, strides, run = sigmas.unbind(), sigmas.diff(dim=0).unbind(), Run(sigmas)
    for n in range(begin, len(strides)):
        x, mean_slope, history = yield from _step(rule, x, levels[n], levels[n + 1], n, history, run)
        x = x + expand(strides[n], x) * mean_slope
        reply = yield State(n + 1, x)
        if isinstance(reply, Restart):
            x = reply.x
    return x


def _step(
    rule: Rule, x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History, run: Run
) -> Generator[Ask, Tensor | Restart | None, tuple[Tensor, Tensor, History]]:
    """One step's questions: the state that it began from, the mean slope and the rule's new history."""
    while True:  # once, and again from every state that somebody puts in the place of ours
        asking, stage = rule(x, sigma, sigma_next, n, history), 0
        try:
            ask = next(asking)
            while True:
                reply = yield ask.placed(Site(n, stage, run))
                if isinstance(reply, Restart):
                    x = reply.x
                    break
                assert reply is not None, "an Ask is answered by slopes"
                ask, stage = asking.send(reply), stage + 1
        except StopIteration as stop:
            return (x, *stop.value)


Event = TypeVar("Event")
Reply = TypeVar("Reply")
Result = TypeVar("Result")


def forward(
    asking: Generator[Event, Reply, Result],
    reply: Reply,
    renamed: Callable[[Event], Event] = lambda event: event,
) -> Generator[Event, Reply, Result]:
    """Goes on with another generator from this reply: its events are ours, under another name, and its result."""
    while True:
        try:
            event = asking.send(reply)
        except StopIteration as stop:
            return stop.value
        reply = yield renamed(event)


def drive(asking: Walk, answer: Answer, detach: bool = False) -> Iterator[State]:
    """Runs a walk, every question answered, and yields its states.

    Args:
        detach: each step starts from a detached state (the rule's history: see `forgetful`).
    """
    reply: Tensor | Restart | None = None
    while True:
        try:
            event = asking.send(reply)
        except StopIteration:
            return
        if isinstance(event, Ask):
            reply = answer(event)
        else:
            yield event
            reply = Restart(event.x.detach()) if detach else None


def plan(rule: Rule, sigmas: Tensor | ArrayLike) -> list[list[Ask]]:
    """Per step, the questions that a rule will ask: a dry run on a state of zeros, since they do not depend on x."""
    levels = checked_sigmas(sigmas)
    asks: list[list[Ask]] = [[] for _ in range(len(levels) - 1)]

    def answer(ask: Ask) -> Tensor:
        asks[ask.site.step].append(ask)
        return torch.zeros_like(ask.points)

    samples = 1 if levels.ndim == 1 else levels.shape[1]
    for _ in drive(walk(rule, levels.new_zeros(samples, 1), levels), answer):
        pass
    return asks
