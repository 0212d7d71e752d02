"""Which weights of a learned rule have a slope to weigh."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Used:
    """Which weights of one step can be non-zero; the others are skipped.

    Args:
        anchor: whether the update weighs the anchor slope.
        memory: indices of the memory columns that the update weighs.
        lookahead: per fan point, indices into [anchor, memory] that point to it; empty: no such point.
    """

    anchor: bool
    memory: tuple[int, ...]
    lookahead: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def remembered(self) -> int:
        """How many of the last slopes are weighed."""
        return 1 + max([-1, *self.memory, *(k - 1 for inside in self.lookahead for k in inside)])


def availability(
    num_steps: int,
    width: int,
    columns: int,
    calls: Sequence[int],
    afs: bool,
    lookahead: NDArray[np.float64] | None = None,
) -> tuple[Used, ...]:
    """Per step, which weights have something to weigh: early steps have little memory, and a one-call first step
    without AFS has no direction to look ahead along, so it evaluates its anchor only.

    Args:
        width: J, fan points a step.
        columns: M, memory columns, a multiple of 1 + J.
        lookahead: (N, J, 1 + M); points without a direction in it are not evaluated. None: every point has one.
    """
    out: list[Used] = []
    fans: list[list[bool]] = []  # newest last: which fan points of that (pseudo-)step were evaluated
    if afs and calls[0] == 1:
        fans.append([False] * width)
    for n in range(num_steps):
        filled = [slot for fan in itertools.islice(reversed(fans), columns // (1 + width)) for slot in (True, *fan)]
        memory = [k for k, evaluated in enumerate(filled) if evaluated]
        inside = [0] * (calls[n] == 2) + [1 + k for k in memory]
        fan = [bool(inside) and (lookahead is None or bool(lookahead[n, j].any())) for j in range(width)]
        out.append(Used(True, tuple(memory), tuple(tuple(inside) if evaluated else () for evaluated in fan)))
        fans.append(fan)
    return tuple(out)
