"""Which numbers of a table can be learned: those that have a slope to weigh, one of each sum left out."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ..solvers.table import Table


def fan_points(table: Table) -> Tensor:
    """(N, J) bool: which fan points are evaluated."""
    rows = [[bool(inside) for inside in u.lookahead] for u in table.available]
    return torch.tensor(rows, dtype=torch.bool).reshape(table.num_steps, table.num_nodes)


def free_update(table: Table, learn: frozenset[str]) -> Tensor:
    """(N, 1 + J + M) bool: which of [anchor, fan, memory] are learned and available."""
    free = torch.zeros(table.num_steps, 1 + table.num_nodes + table.columns, dtype=torch.bool)
    for n, u in enumerate(table.available):
        free[n, 0] = "anchor" in learn
        for j, inside in enumerate(u.lookahead):
            free[n, 1 + j] = "weights" in learn and bool(inside)
        if "memory" in learn:
            for k in u.memory:
                free[n, 1 + table.num_nodes + k] = True
    return free


def free_lookahead(table: Table) -> Tensor:
    """(N, J, 1 + M) bool: which of [anchor, memory] are available to each fan point."""
    free = torch.zeros(table.effective_lookahead.shape, dtype=torch.bool)
    for n, u in enumerate(table.available):
        for j, inside in enumerate(u.lookahead):
            for k in inside:
                free[n, j, k] = True
    return free


def but_first(free: Tensor) -> Tensor:
    return free & (free.cumsum(-1) > 1)


def first(free: Tensor) -> Tensor:
    return free & (free.cumsum(-1) == 1)


def sum_to_one(values: Tensor, first: Tensor) -> Tensor:
    """The first free entry of each last-axis row replaced by what is missing to one."""
    kept = values.masked_fill(first, 0.0)
    return kept + first * (1 - kept.sum(-1, keepdim=True))


def on_simplex(table: Table, learn: Collection[str]) -> bool:
    """Whether the fan's weights have every step that has a fan for themselves."""
    if not table.consistent or "weights" not in learn or "anchor" in learn or ("memory" in learn and table.columns):
        return False
    fixed = torch.tensor((table.anchor != 0) | (table.memory != 0).any(1)) & fan_points(table).any(1)
    return not bool(fixed.any())
