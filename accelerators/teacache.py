"""All blocks are left out while the modulated input has changed little since they were last computed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from .moment import Moment, Work
from .site import Site
from .skipping import Skipping, require_settings, unplanned


@dataclass(frozen=True)
class TeaCache:
    """TeaCache: the whole stack of blocks is left out while the rescaled changes of its input add up to little.

    With m_n what the first attention sees in step n, c_n = p(|m_n - m_(n-1)| / |m_(n-1)|) with the polynomial p, the
    mean as |.|: what the stack added when it was last computed stands for it while the sum of c since then is below
    the threshold. The first and the last step are always computed. Every question, point and guidance branch of a
    step has its own memory.

    Args:
        threshold: relative change, from 0 (nothing is left out).
        coefficients: of p, highest power first; `fit_teacache` finds them. FLUX.1: (498.651651, -283.781631,
            55.8554382, -3.82021401, .264230861). Below 0 it counts as 0.
        order: 0: what was added last; 1: extrapolated in log sigma from the last two times.
        each: whether every `sample` decides for itself, so that a sample does not depend on its batch, or the `call`
            as a whole, whose shapes do not change.

    Raises:
        ValueError: for a setting out of its range.

    Reference: arXiv 2411.19108, Eqs. 5-7.
    """

    threshold: float
    coefficients: tuple[float, ...] = (1.0, 0.0)
    order: int = 1
    each: Literal["sample", "call"] = "sample"

    def __post_init__(self) -> None:
        require_settings(self.threshold, self.order, self.each)
        object.__setattr__(self, "coefficients", tuple(float(c) for c in self.coefficients))
        if not self.coefficients or not all(map(math.isfinite, self.coefficients)):
            raise ValueError(f"coefficients = {list(self.coefficients)} must be finite, one at least: 1, 0 is p(x) = x")

    def attach(self, site: Site) -> Skipping:
        """Covers the blocks."""
        return Skipping(self, site, False, self.rescaled)

    def plan(self, calls: Sequence[Moment]) -> list[Work] | None:
        """It depends on the sample."""
        return unplanned(calls, self.threshold)

    def rescaled(self, change: float) -> float:
        """max(p(change), 0)."""
        return max(functools.reduce(lambda value, c: value * change + c, self.coefficients, 0.0), 0.0)


def fit_polynomial(x: Sequence[float], y: Sequence[float], degree: int = 4) -> tuple[float, ...]:
    """The polynomial of least squares through points, coefficients highest power first.

    Args:
        x, y: of equal length; more than `degree` different x.

    Raises:
        ValueError: for fewer, or for what is not finite.
    """
    points, values = (torch.as_tensor(v, dtype=torch.float64) for v in (x, y))
    if points.ndim != 1 or points.shape != values.shape or len(set(points.tolist())) <= degree:
        raise ValueError(
            f"a polynomial of degree {degree} needs more than {degree} different points, each with a value"
        )
    if not (points.isfinite().all() and values.isfinite().all()):
        raise ValueError("points and values must be finite: leave those out that are not")
    scale = points.abs().max()  # powers of one size
    powers = torch.arange(degree, -1, -1, dtype=torch.float64)
    found = torch.linalg.lstsq((points / scale)[:, None] ** powers, values[:, None], driver="gelsd").solution[:, 0]
    return tuple((found / scale**powers).tolist())
