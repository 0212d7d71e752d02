"""What tuning comes to: the structures that were tried, the table, the evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..solvers.table import Table
from .comparison import Cell, Comparison

WITHIN = 1.05  # of a latency: what is still as long


@dataclass(frozen=True)
class Tried:
    """A structure: how long it takes here, and once it is learned how good it is.

    Args:
        latency_ms: of one request.
        rmse: to the converged end points of held-out noise, which the choice is made by; none: not learned.
    """

    calls: int
    points: int
    latency_ms: float
    rmse: float | None = None

    @property
    def name(self) -> str:
        return f"{self.calls}-calls-{self.points}-points"


@dataclass(frozen=True)
class Tuned:
    """The result, and the evidence for it.

    Args:
        latency_ms: of one request with the table, measured when it was learned.
        tried: all structures, those that were learned with their errors.
        handmade_calls: sequential calls that a hand-made solver can make in that latency, or in the budget.
        comparison: the table and every hand-made solver at these calls, on fresh samples.
    """

    table: Table
    latency_ms: float
    tried: tuple[Tried, ...]
    handmade_calls: int
    comparison: Comparison

    @property
    def cell(self) -> Cell:
        """What was measured of the table."""
        return next(cell for cell in self.comparison.cells if cell.learned)

    @property
    def rival(self) -> Cell:
        """The best hand-made solver of at most as many calls as fit."""
        own = [c for c in self.comparison.cells if not c.learned and c.asked <= self.handmade_calls]
        return min(own, key=lambda cell: cell.rmse)

    def verdict(self) -> str:
        """What was chosen, what it is worth and what it gives up, in three sentences."""
        cell, rival = self.cell, self.rival
        ratio = rival.rmse / cell.rmse
        rest = [t for t in self.tried if t.rmse is not None and t.latency_ms > self.latency_ms * WITHIN]
        more = min(rest, key=lambda t: t.rmse or math.inf, default=None)
        typical = "" if cell.median is None else f"; half of the samples less than {cell.median:.2g}"
        gives = f"It gives up {cell.rmse:.4g} (RMSE{typical}) to the converged end"
        if more is not None and more.rmse is not None:
            gives += f"; {more.calls} calls of {more.points} would come to {more.rmse:.4g} in {more.latency_ms:.4g} ms"
        worth = f"{ratio:.2f} times the error" if ratio >= 1 else f"{ratio:.2f} times the error, so take that one"
        return (
            f"{cell.calls} sequential calls, {cell.evaluations} evaluations, {self.latency_ms:.4g} ms a request. In as "
            f"much time the best hand-made solver, {rival.solver} at {rival.calls} calls, comes to {rival.rmse:.4g}: "
            f"{worth}. {gives}."
        )


def evidence(tuned: Tuned) -> str:
    """The structures that were tried, and the verdict, as Markdown."""
    names = ("sequential calls", "points", "evaluations", "ms a request", "RMSE on held-out noise")
    head = f"| {' | '.join(names)} |\n|{' ---: |' * len(names)}"
    rows = [
        f"| {t.calls} | {t.points} | {t.calls * t.points} | {t.latency_ms:.4g} | "
        f"{'not learned: another has as many calls and evaluations' if t.rmse is None else f'{t.rmse:.4g}'} |"
        for t in tuned.tried
    ]
    return "\n".join([head, *rows, "", tuned.verdict()])
