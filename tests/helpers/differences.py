"""Distributions whose mean is zero, for the tests of conservative refinement."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[int, int, torch.Generator], Tensor]  # runs, samples, generator -> (runs, samples)


def normal(runs: int, n: int, generator: torch.Generator) -> Tensor:
    """Of variance one."""
    return torch.randn(runs, n, generator=generator, dtype=torch.float64)


def _uniform(runs: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(runs, n, generator=generator, dtype=torch.float64)


def verdicts(nonzero: float) -> Draw:
    """A verifier's: -1 and 1 with probability nonzero / 2 each, otherwise 0."""

    def draw(runs: int, n: int, generator: torch.Generator) -> Tensor:
        u = _uniform(runs, n, generator)
        return (u < nonzero / 2).double() - (u > 1 - nonzero / 2).double()

    return draw


def lottery(loss: float) -> Draw:
    """Small gains for large losses: loss - 1 with probability loss, otherwise loss."""
    return lambda runs, n, generator: loss - (_uniform(runs, n, generator) < loss).double()


def heavy(runs: int, n: int, generator: torch.Generator) -> Tensor:
    """Symmetric Pareto of exponent 2.5: its variance is finite, its third moment is not."""
    u = 2 * _uniform(runs, n, generator) - 1
    return u.sign() * ((1 - u.abs()) ** (-1 / 2.5) - 1)


def lognormal(runs: int, n: int, generator: torch.Generator) -> Tensor:
    """Skewed to large losses: sqrt(e) less a lognormal, skewness -6.2."""
    return math.exp(0.5) - normal(runs, n, generator).exp()


ZERO_MEAN: dict[str, Draw] = {
    "normal": normal,
    "heavy": heavy,
    "lognormal": lognormal,
    "lottery of a tenth": lottery(0.1),
    "verdicts, 1 in 5": verdicts(0.2),
    "verdicts, 1 in 100": verdicts(0.01),
    "verdicts, 1 in 500": verdicts(0.002),
}
