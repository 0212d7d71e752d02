"""Which weights of a learned rule have a slope to weigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


def availability(num_steps: int, width: int, columns: int, calls: Sequence[int], afs: bool) -> tuple[Used, ...]:
    """Per step, which weights have something to weigh: early steps have little memory, and a one-call first step
    without AFS has no direction to look ahead along, so it evaluates its anchor only.

    Args:
        width: J, fan points a step.
        columns: M, memory columns.
    """
    out: list[Used] = []
    fans: list[bool] = []  # newest last: was the fan of that (pseudo-)step evaluated?
    if afs and calls[0] == 1:
        fans.append(False)
    for n in range(num_steps):
        memory = []
        for k, evaluated in enumerate(reversed(fans)):
            memory += [k * (1 + width) + s for s in range(1 + width) if s == 0 or evaluated]
        memory = [k for k in memory if k < columns]
        inside = [0] * (calls[n] == 2) + [1 + k for k in memory]
        out.append(Used(True, tuple(memory), (tuple(inside),) * width))
        fans.append(bool(inside) and width > 0)
    return tuple(out)
