"""More steps for a table, without any change of what it computes: where a larger table's training starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from .table import Table
from .table_checks import Array

Slope = tuple[int, int]  # of which step, in which slot: 0 the anchor, 1 to J the fan points
Sum = dict[Slope, float]  # a weighted sum of slopes
ROWS = ("nodes", "slope_scale", "sigma_scale", "guidance_scale")  # a number for each point, beside its weight


def split_step(table: Table, n: int, sigma: float, calls: int = 1) -> Table:
    """The same solver with step n in two, its second part beginning with a call that has no weight yet.

    With S the step's mean slope, x' = x + (s - sigma_n) S1 + (sigma_n+1 - s) S2 for any S1 and the S2 that makes the
    sum right. Fan points are evaluated in the part where they lie, at the same states; S1 is S without those of the
    second part, whose weights the anchor takes.

    Args:
        table: whose memory reaches far enough, see below.
        n: 0 to N - 1.
        sigma: s, inside the step and not at a fan point.
        calls: 1 or 2, of the second part.

    Returns:
        A table of N + 1 steps whose trajectory passes through the same states, but for rounding, and another at s. It
        remembers as many steps as `table`, or all of them where that does. Its sums are free where slopes are scaled.

    Raises:
        ValueError: for a step that is none, a sigma outside it or at a fan point, another number of calls, or a memory
            too short for the older slopes that the second part and later steps weigh.
    """
    if not 0 <= n < table.num_steps:
        raise ValueError(f"n = {n} is no step of the table: give 0 to {table.num_steps - 1}")
    high, low = table.sigmas[n : n + 2].tolist()
    if not low < sigma < high:
        raise ValueError(f"sigma = {sigma:g} is not inside step {n}: take one between {high:g} and {low:g}")
    points = low ** table.nodes[n] * high ** (1 - table.nodes[n])
    if np.isclose(points, sigma, rtol=1e-6, atol=0).any():
        raise ValueError(f"sigma = {sigma:g} is where step {n} has a fan point: take another one beside it")
    return _Split(table, n, sigma, calls).table()


@dataclasses.dataclass(frozen=True)
class _Split:
    old: Table
    n: int
    sigma: float
    calls: int

    def table(self) -> Table:
        old, n = self.old, self.n
        first, second = self._updates()
        updates = [self._moved(self._update(k)) for k in range(old.num_steps)]
        updates[n : n + 1] = [first, second]
        rows = [[self._moved(self._ahead(k, j)) for j in range(old.num_nodes)] for k in range(old.num_steps)]
        rows[n : n + 1] = [self._first_points(), self._second_points()]
        nodes, slope_scale, sigma_scale, guidance_scale = map(self._rows, ROWS)
        anchor_scale, anchor_guidance = (np.insert(row, n + 1, 1.0) for row in (old.anchor_scale, old.anchor_guidance))
        remembered = self._remembered()
        weights = np.array([[u.pop((k, 1 + j), 0.0) for j in range(old.num_nodes)] for k, u in enumerate(updates)])
        anchor = np.array([u.pop((k, 0), 0.0) for k, u in enumerate(updates)])
        ahead = [[row.pop((k, 0), 0.0) for row in step] for k, step in enumerate(rows)]
        memory = np.array([self._columns(k, u, remembered) for k, u in enumerate(updates)])
        past = [[self._columns(k, row, remembered) for row in step] for k, step in enumerate(rows)]
        shape = (old.num_steps + 1, old.num_nodes)
        lookahead = np.concatenate(
            [np.reshape(ahead, (*shape, 1)), np.reshape(past, (*shape, remembered * self._width))], 2
        )
        return Table(
            np.insert(old.sigmas, n + 1, self.sigma), nodes, weights.reshape(shape) / slope_scale, slope_scale,
            sigma_scale, afs=old.afs, anchor=anchor, memory=memory, lookahead=lookahead if old.num_nodes else None,
            calls=(*old.calls[: n + 1], self.calls, *old.calls[n + 1 :]), anchor_scale=anchor_scale,
            guidance_scale=guidance_scale, anchor_guidance=anchor_guidance,
            consistent=old.consistent and bool((old.slope_scale == 1).all()), provenance=old.provenance,
        )  # fmt: skip

    @property
    def _width(self) -> int:
        return 1 + self.old.num_nodes

    def _remembered(self) -> int:
        """Steps that the new table remembers."""
        held = self.old.columns // self._width
        everything = self.old.num_steps - 1 + (self.old.afs and self.old.calls[0] == 1)
        return held + 1 if held >= everything else held

    def _is_late(self, j: int) -> bool:
        """Whether fan point j of the step lies in its second part."""
        high, low = self.old.sigmas[self.n : self.n + 2]
        return low ** self.old.nodes[self.n, j] * high ** (1 - self.old.nodes[self.n, j]) < self.sigma

    def _slopes(self, k: int, weights: Array) -> Sum:
        """A row of memory, by the slopes that it weighs."""
        sources = (divmod(column, self._width) for column in range(len(weights)))
        return {(k - 1 - past, slot): w for (past, slot), w in zip(sources, weights.tolist(), strict=True) if w}

    def _update(self, k: int) -> Sum:
        """The mean slope of an old step."""
        old = self.old
        fan = (old.weights[k] * old.slope_scale[k]).tolist()
        own = {(k, 0): float(old.anchor[k])} | {(k, 1 + j): w for j, w in enumerate(fan)}
        return own | self._slopes(k, old.memory[k])

    def _ahead(self, k: int, j: int) -> Sum:
        """The direction to a point of an old step."""
        row = self.old.effective_lookahead[k, j]
        return self._slopes(k, row[1:]) | ({(k, 0): float(row[0])} if row[0] else {})

    def _moved(self, terms: Sum) -> Sum:
        """The same sum, of the new table's slopes."""

        def place(step: int, slot: int) -> Slope:
            later = step > self.n or (step == self.n and slot > 0 and self._is_late(slot - 1))
            return step + later, slot

        return {place(*slope): weight for slope, weight in terms.items()}

    def _updates(self) -> tuple[Sum, Sum]:
        """S1 and S2."""
        high, low = self.old.sigmas[self.n : self.n + 2]
        whole = self._moved(self._update(self.n))
        late = {slope: w for slope, w in whole.items() if slope[0] == self.n + 1}
        first = {slope: w for slope, w in whole.items() if slope not in late}
        first[self.n, 0] += sum(late.values())
        rest = low - self.sigma
        return first, _combined(whole, (low - high) / rest, first, (high - self.sigma) / rest)

    def _first_points(self) -> list[Sum]:
        return [
            self._spare(self.n) if self._is_late(j) else self._moved(self._ahead(self.n, j))
            for j in range(self.old.num_nodes)
        ]

    def _second_points(self) -> list[Sum]:
        """Late points are reached from another state: x + (tau - sigma_n) A = x_s + (tau - s) A'."""
        high, low = self.old.sigmas[self.n : self.n + 2]
        first, out = self._updates()[0], []
        for j, r in enumerate(self.old.nodes[self.n]):
            direction = self._moved(self._ahead(self.n, j))
            if not self._is_late(j) or not direction:
                out.append(self._spare(self.n + 1))
                continue
            here = low**r * high ** (1 - r)
            step = here - self.sigma
            out.append(_combined(direction, (here - high) / step, first, (high - self.sigma) / step))
        return out

    def _spare(self, k: int) -> Sum:
        """A direction for a point that is of no weight yet: the newest slope that there is."""
        calls = self.old.calls[self.n] if k == self.n else self.calls
        if calls == 2:
            return {(k, 0): 1.0}
        analytic = k == 0 and self.old.afs
        return {(k - 1, 0): 1.0} if calls and (k or analytic) else {}

    def _rows(self, name: str) -> Array:
        """A field of the points, with the spare ones in the middle of their part and unscaled."""
        rows = np.insert(getattr(self.old, name), self.n + 1, getattr(self.old, name)[self.n], 0)
        high, low = self.old.sigmas[self.n : self.n + 2].tolist()
        for j in range(self.old.num_nodes):
            late, r = self._is_late(j), float(self.old.nodes[self.n, j])
            spare = self.n if late else self.n + 1
            rows[spare, j] = 0.5 if name == "nodes" else 1.0
            if name == "nodes":
                here = r * math.log(low / high) + math.log(high)
                top, bottom = (self.sigma, low) if late else (high, self.sigma)
                rows[self.n + late, j] = (here - math.log(top)) / math.log(bottom / top)
        return rows

    def _columns(self, k: int, terms: Mapping[Slope, float], remembered: int) -> list[float]:
        """A row of memory, newest step first."""
        row = [0.0] * (remembered * self._width)
        for (step, slot), weight in terms.items():
            past = k - 1 - step
            if not weight:
                continue
            if past >= remembered:
                raise ValueError(
                    f"when step {self.n} is split, step {k} of the new table weighs slopes of {past + 1} steps ago, "
                    f"and the table remembers {remembered}: split another step, or take a table that remembers all"
                )
            row[past * self._width + slot] = weight
        return row


def _combined(one: Sum, factor: float, other: Sum, other_factor: float) -> Sum:
    sources = {**one, **other}
    return {source: factor * one.get(source, 0.0) + other_factor * other.get(source, 0.0) for source in sources}
