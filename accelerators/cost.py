"""What network calls cost: the volume of their boxes, rows x tokens x blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .moment import ALL, Moment, Work


@dataclass(frozen=True)
class Called:
    """A network call that was made.

    Args:
        now: which one.
        rows: that were computed, of `now.rows`.
        tokens, blocks: shares, see `Work`.
    """

    now: Moment
    rows: int
    tokens: float = 1.0
    blocks: float = 1.0

    @classmethod
    def of(cls, now: Moment, work: Work | None) -> Called:
        """A call of which this was computed."""
        work = ALL if work is None else work
        rows = now.rows if work.rows is None else now.copies * len(work.rows)
        return cls(now, rows, work.tokens, work.blocks)


@dataclass(frozen=True)
class Cost:
    """Of network calls, in forwards of one row; guidance doubles the rows.

    Args:
        calls: number of calls; of those that compute nothing, too.
        dense: rows of all of them when nothing is spared.
        rows: that are computed.
        tokens: rows x share of the tokens.
        blocks: rows x share of the tokens x share of the blocks: the cost.
    """

    calls: int = 0
    dense: int = 0
    rows: float = 0.0
    tokens: float = 0.0
    blocks: float = 0.0

    @classmethod
    def of(cls, calls: Iterable[Called]) -> Cost:
        """Of these calls together."""
        total = cls()
        for called in calls:
            tokens = called.rows * called.tokens
            total += cls(1, called.now.rows, called.rows, tokens, tokens * called.blocks)
        return total

    @property
    def share(self) -> float:
        """Of the dense run's cost; 1 without calls."""
        return self.blocks / self.dense if self.dense else 1.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls, self.dense + other.dense, self.rows + other.rows, self.tokens + other.tokens,
            self.blocks + other.blocks,
        )  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, {self.dense} rows dense: {self.rows:g} rows, {self.tokens:g} with their share of "
            f"tokens, {self.blocks:g} with that of blocks, too: {self.share:.1%}"
        )


def together(plans: Sequence[Sequence[Work] | None], calls: Sequence[Moment]) -> list[Called] | None:
    """What several plans leave of the same calls; None where one of them is none."""
    out = []
    for i, now in enumerate(calls):
        works = []
        for plan in plans:
            if plan is None:
                return None
            works.append(plan[i])
        out.append(Called.of(now, merged(works, now)))
    return out


def merged(works: Sequence[Work | None], now: Moment) -> Work:
    """What all accelerators leave of a call."""
    rows: set[int] | None = None
    tokens = blocks = 1.0
    for work in works:
        if work is None:
            continue
        tokens, blocks = tokens * work.tokens, blocks * work.blocks
        if work.rows is not None:
            own = {int(row) for row in work.rows}
            rows = own if rows is None else rows & own
    if rows is not None and len(rows) == now.samples * now.points:
        rows = None
    return Work(None if rows is None else sorted(rows), tokens, blocks)
