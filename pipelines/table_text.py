"""Rows of text for the weights of earlier slopes, as the command line and the model card show them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..solvers.table import Table
from ..solvers.table_checks import Array

MEMORY = "weights of earlier slopes, newest step first, each step as its anchor and its points"


def memory_rows(table: Table) -> Iterator[tuple[str, ...]]:
    """A head and one row per step whose update weighs earlier slopes; nothing where none does."""
    if not table.memory.any():
        return
    yield "step", "memory"
    for n, row in enumerate(table.memory):
        if row.any():
            yield str(n), remembered(row, 1 + table.num_nodes)


def lookahead_rows(table: Table) -> Iterator[tuple[str, ...]]:
    """A head and one row per evaluated fan point; nothing where all of them lie along the anchor slope."""
    weights = table.effective_lookahead
    if not weights[:, :, 1:].any():
        return
    yield "step", "point", "anchor", "memory"
    for n, used in enumerate(table.used):
        for j, inside in enumerate(used.lookahead):
            if inside:
                anchor = f"{weights[n, j, 0]:.4f}" if table.calls[n] == 2 else "-"
                yield str(n), str(j), anchor, remembered(weights[n, j, 1:], 1 + table.num_nodes)


def remembered(row: Array, width: int) -> str:
    """A row of memory without the zeros at its end, its steps apart where each has more than one slope."""
    steps = row[: np.flatnonzero(row)[-1] + 1] if row.any() else row[:0]
    groups = [numbers(steps[k : k + width]) for k in range(0, len(steps), width)]
    return ("; " if width > 1 else " ").join(groups) or "-"


def numbers(row: Array, digits: int = 0) -> str:
    """A row of numbers: four decimals, or so many significant digits."""
    return " ".join(f"{value:.{digits}g}" if digits else f"{value:.4f}" for value in row.tolist()) or "-"


def point_numbers(table: Table, n: int, row: Array, digits: int = 0) -> str:
    """Numbers of a step's fan points; a dash for a point that is not evaluated."""
    cells = [numbers(row[j : j + 1], digits) if inside else "-" for j, inside in enumerate(table.used[n].lookahead)]
    return " ".join(cells) if set(cells) != {"-"} else "-"


def has_analytic_anchor(table: Table, n: int) -> bool:
    """Whether the slope at a step's state is the analytic one, for which the network is not asked."""
    return n == 0 and table.moves_first_call


def point_sigmas(table: Table, n: int) -> Array:
    """(J,) where a step's fan points lie."""
    return table.sigmas[n + 1] ** table.nodes[n] * table.sigmas[n] ** (1 - table.nodes[n])
