"""The order of a step's fan points, which changes no sample."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .table import Table
from .table_checks import Array

ROWS = ("nodes", "weights", "slope_scale", "sigma_scale", "guidance_scale")  # a number for each point


def with_nodes_in_order(table: Table) -> Table:
    """The same solver with each row's nodes in increasing order (memory and look-ahead columns follow them)."""
    width = table.num_nodes
    order = [np.argsort(row, kind="stable") for row in table.nodes]

    def columns(n: int, count: int) -> list[int]:
        moved = []
        for k in range(count):
            past, slot = divmod(k, 1 + width)
            earlier = n - 1 - past
            moved.append(k if slot == 0 or earlier < 0 else past * (1 + width) + 1 + int(order[earlier][slot - 1]))
        return moved

    def rows(name: str) -> Array:
        array: Array = getattr(table, name)
        return np.array([row[p] for row, p in zip(array, order, strict=True)]).reshape(array.shape)

    changes: dict[str, Any] = {k: rows(k) for k in ROWS}
    m = table.memory.shape[1]
    changes["memory"] = np.array([table.memory[n][columns(n, m)] for n in range(table.num_steps)])
    if table.lookahead is not None:
        lookahead = [table.lookahead[n][order[n]] for n in range(table.num_steps)]
        order_of = [[0, *(1 + k for k in columns(n, m))] for n in range(table.num_steps)]
        changes["lookahead"] = np.array([row[:, order_of[n]] for n, row in enumerate(lookahead)])
    return dataclasses.replace(table, **changes)
