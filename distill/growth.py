"""A learned table of few calls or points as the start of one with more: so more of either are never worse."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..solvers.grow import split_step
from ..solvers.table import Table
from ..solvers.widen import add_points
from .initial import start_nodes

# Where a step is split, in log sigma: at its middle, or beside it where a fan point already is.
PLACES = (0.5, 0.4, 0.6, 0.45, 0.55)


def grown(table: Table, calls: int) -> Table:
    """A table of this many sequential calls that computes the same: its longest steps in log sigma are split.

    Raises:
        ValueError: for a table that makes as many calls or more, or whose memory is too short to be split anywhere.
    """
    if table.depth >= calls:
        raise ValueError(f"calls = {calls}, but the table makes {table.depth} already: give more, or another table")
    parent = table.digest
    while table.depth < calls:
        two = set(table.calls) == {2} and calls - table.depth >= 2
        table = _split_longest(table, 2 if two else 1)
    return dataclasses.replace(table, provenance=dataclasses.replace(table.provenance, parent=parent))


def widened(table: Table, width: int) -> Table:
    """A table of this many fan points a step that computes the same: the new ones have no weight yet.

    Raises:
        ValueError: for a table that has as many points or more, or no direction for them.
    """
    if table.num_nodes >= width:
        raise ValueError(f"{width} points a step, but the table has {table.num_nodes} already: give more")
    nodes, _ = start_nodes(table.sigmas, width, far=True)
    wide = add_points(table, nodes[:, table.num_nodes :])
    return dataclasses.replace(wide, provenance=dataclasses.replace(table.provenance, parent=table.digest))


def _split_longest(table: Table, calls: int) -> Table:
    """The longest step that can be split, split; that to the smallest sigma last, as little happens there."""
    lengths = -np.diff(np.log(table.sigmas))
    # Steps from or to the ends are as long as the range is wide; what is learned lies between.
    inner = [n for n in np.argsort(-lengths) if 0 < n < table.num_steps - 1]
    reasons = []
    for n in [*inner, table.num_steps - 1, 0]:
        high, low = table.sigmas[n : n + 2]
        for place in PLACES:
            try:
                return split_step(table, int(n), float(low**place * high ** (1 - place)), calls)
            except ValueError as error:
                reasons.append(str(error))
    raise ValueError(f"no step of the table can be split: {reasons[-1]}")
