"""More points for a table, without any change of what it computes: where a wider table's training starts."""

from __future__ import annotations

import dataclasses

import numpy as np

from .table import Table
from .table_checks import Array


def add_points(table: Table, nodes: Array) -> Table:
    """The same solver with P more fan points in every step, which have no weight yet.

    They lie along the anchor of a step of two calls, and along the newest earlier slope of one call: with r the node,
    x + (tau - sigma) d at tau = sigma^(1 - r) sigma'^r. A step that has neither keeps the points that it has.

    Args:
        nodes: (N, P), in (0, 1).

    Returns:
        A table of J + P points a step, which evaluates them all, and whose trajectory is that of `table`.

    Raises:
        ValueError: for nodes of another shape, or where no step has a direction for more points.
    """
    steps, more = table.num_steps, nodes.shape[1]
    if nodes.shape != (steps, more) or not more:
        raise ValueError(f"nodes have shape {nodes.shape}: give ({steps}, P), a row for each step, P from 1 on")
    old, new = 1 + table.num_nodes, 1 + table.num_nodes + more
    kept = table.columns // old

    def moved(rows: Array) -> Array:
        """Columns of memory, as those of a table whose steps have more slopes."""
        out = np.zeros((*rows.shape[:-1], kept, new))
        out[..., :old] = rows.reshape(*rows.shape[:-1], kept, old)
        return out.reshape(*rows.shape[:-1], kept * new)

    ahead = np.zeros((steps, more, 1 + kept * new))
    for n, calls in enumerate(table.calls):
        if calls == 2:
            ahead[n, :, 0] = 1
        elif calls and table.columns and (n or table.afs):
            ahead[n, :, 1] = 1
    if not ahead.any():
        raise ValueError("no step can have more points: those of one call lie along earlier slopes, and none is kept")
    own = table.effective_lookahead
    beside = np.concatenate([own[..., :1], moved(own[..., 1:])], 2)
    one, zero = np.ones((steps, more)), np.zeros((steps, more))
    names = ("slope_scale", "sigma_scale", "guidance_scale")
    scales = {name: np.concatenate([getattr(table, name), one], 1) for name in names}
    return dataclasses.replace(
        table,
        nodes=np.concatenate([table.nodes, nodes], 1),
        weights=np.concatenate([table.weights, zero], 1),
        memory=moved(np.pad(table.memory, ((0, 0), (0, table.columns - table.memory.shape[1])))),
        lookahead=np.concatenate([beside, ahead], 1),
        order=1,
        **scales,
    )
