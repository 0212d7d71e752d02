"""Slopes of the past in place of network calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .moment import Moment, Work
from .site import Site


@dataclass(frozen=True)
class Reuse:
    """In some solver steps the last slope at a state stands for those that the network would be asked for.

    d(x, sigma) ~ d(x', sigma') of the latest state where it was computed. Slopes are kept and not the network's
    outputs: of a v prediction the latter double the error. On a grid this is a larger step; every fan reused is the
    solver of the anchors alone.

    Args:
        steps: solver steps, from 0.
        where: `all` their points, or those of the `fan`.

    Raises:
        ValueError: for no step, a negative one, or another place.
    """

    steps: tuple[int, ...]
    where: Literal["all", "fan"] = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(sorted({int(n) for n in self.steps})))
        if not self.steps or self.steps[0] < 0:
            raise ValueError(f"steps = {list(self.steps)} must be solver steps from 0: give one at least")
        if self.where not in ("all", "fan"):
            raise ValueError(f"where = {self.where!r} is unknown: give 'all' or 'fan'")

    def attach(self, site: Site) -> Reusing:
        """Needs no hook."""
        return Reusing(self)

    def plan(self, calls: Sequence[Moment]) -> list[Work]:
        """Which rows of these calls are computed: known beforehand."""
        out, kept = [], False
        for now in calls:
            out.append(self.work(now, kept))
            kept = kept or now.state
        return out

    def work(self, now: Moment, kept: bool) -> Work:
        """What of a call is computed, where a slope is kept or not."""
        if now.step not in self.steps:
            return Work()
        if now.state and not (self.where == "all" and kept):  # its own slope will do for the fan beside it
            return Work([b * now.points for b in range(now.samples)])
        return Work([] if kept else None)


class Reusing:
    """See `Live`."""

    def __init__(self, settings: Reuse) -> None:
        self._settings = settings
        self._kept: Tensor | None = None  # (B, *S)

    def begin(self) -> None:
        self._kept = None

    def before(self, now: Moment) -> Work:
        return self._settings.work(now, self._kept is not None)

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        work = self._settings.work(now, self._kept is not None)
        if now.state and (work.rows is None or len(work.rows)):
            self._kept = slopes[0].clone()  # a view would keep the others alive
        if work.rows is None or len(work.rows) == now.samples * now.points:
            return slopes
        assert self._kept is not None, "rows are left out where a slope is kept"
        others = self._kept.expand_as(slopes)
        return torch.cat([slopes[:1], others[1:]]) if len(work.rows) else others.clone()

    def stored(self) -> int:
        return 0 if self._kept is None else self._kept.nbytes
