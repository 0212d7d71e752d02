"""The one loop: a rule asks for slopes, somebody answers, every step is x += (sigma' - sigma) * mean_slope."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .schedules import given

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """ "The slopes at these K points, please": independent of each other, so one batched network call.

    Args:
        points: (K, B, *S).
        sigma: (K,), or (K, B) when each sample has its own table: where the slope is defined (the divisor), float64.
        sigma_scale: like sigma: the network is told sigma * sigma_scale; None is 1.
    """

    points: Tensor
    sigma: Tensor
    sigma_scale: Tensor | None = None

    @property
    def told(self) -> Tensor:
        """The noise levels that the network is told."""
        return self.sigma if self.sigma_scale is None else self.sigma * self.sigma_scale


# A rule's answer to "which mean slope over [sigma, sigma']?": it yields what it must know and returns
# (mean slope, history for the next step). The history is the rule's own; nobody else looks inside.
History = tuple[Any, ...]
Steps = Generator[Ask, Tensor, tuple[Tensor, History]]
Rule = Callable[[Tensor, Tensor, Tensor, int, History], Steps]


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, 0-d or one per sample (B,), ready to multiply x (B, *S) without changing its dtype."""
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def drive(asking: Generator[Ask, Tensor, T], answer: Callable[[Ask], Tensor]) -> T:
    """Runs a rule's generator to its return value, answering everything that it asks."""
    try:
        ask = next(asking)
        while True:
            ask = asking.send(answer(ask))
    except StopIteration as stop:
        return stop.value


def plan(rule: Rule, sigmas: Tensor | ArrayLike) -> list[list[Ask]]:
    """Per step, what the rule will ask for: a dry run on a state of zeros (the sigmas asked for do not depend on x)."""
    levels = given(sigmas)
    x = torch.zeros(1, 1, dtype=torch.float64)
    history: History = ()
    asks: list[list[Ask]] = []
    for n in range(len(levels) - 1):
        asks.append([])

        def answer(ask: Ask, step: list[Ask] = asks[-1]) -> Tensor:
            step.append(ask)
            return torch.zeros_like(ask.points)

        _, history = drive(rule(x, levels[n], levels[n + 1], n, history), answer)
    return asks
