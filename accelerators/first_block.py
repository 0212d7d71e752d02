"""The first block is computed; while what it adds changes little, what the others add is taken from before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .moment import Moment, Work
from .site import Site
from .skipping import Skipping, require_settings, unplanned


@dataclass(frozen=True)
class FirstBlock:
    """First-block cache: of a transformer's blocks all but the first are left out while its own residual is steady.

    With r what block 0 adds to its input and R what the others add: where |r - r'| / |r'| < threshold, ' the last
    time that all were computed and |.| the mean, R' stands for R. The first and the last step are always computed.
    Every question, point and guidance branch of a step has its own memory, so that it works under a fan.

    Args:
        threshold: relative change, from 0 (nothing is left out); .05 to .2 are usual.
        order: 0: R' as it was; 1: extrapolated in log sigma from the last two times.
        each: whether every `sample` decides for itself, so that a sample does not depend on its batch, or the `call`
            as a whole, whose shapes do not change.

    Raises:
        ValueError: for a setting out of its range.

    Reference: ParaAttention's first block cache; TeaCache, arXiv 2411.19108.
    """

    threshold: float
    order: int = 1
    each: Literal["sample", "call"] = "sample"

    def __post_init__(self) -> None:
        require_settings(self.threshold, self.order, self.each)

    def attach(self, site: Site) -> Skipping:
        """Covers the blocks."""
        return Skipping(self, site, True, lambda change: change)

    def plan(self, calls: Sequence[Moment]) -> list[Work] | None:
        """It depends on the sample."""
        return unplanned(calls, self.threshold)
