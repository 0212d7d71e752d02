"""A table's numbers in blocks, for heat maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..pipelines.table_text import has_analytic_anchor
from ..solvers.table import Table
from ..solvers.table_checks import Array


@dataclass(frozen=True)
class Block:
    """Numbers of one kind.

    Args:
        values: (N, C), NaN where there is none.
        columns: C names.
        centre: what has no colour.
    """

    title: str
    values: Array
    columns: tuple[str, ...]
    centre: float


def blocks_of(table: Table) -> list[Block]:
    """Sigmas, nodes, weights, scales and memory of a table; scales only where one is not 1, memory where it is used."""
    points = tuple(f"point {j + 1}" for j in range(table.num_nodes))
    asked = np.array([[bool(inside) for inside in used.lookahead] for used in table.used]).reshape(table.nodes.shape)
    called = np.array([[not has_analytic_anchor(table, n)] for n in range(table.num_steps)])
    levels = np.stack([table.sigmas[:-1], table.sigmas[1:]], 1)
    weights = np.where(asked, table.weights, np.nan)
    out = [
        Block("log10 sigma", np.log10(levels), ("from", "to"), 0.0),
        Block("node", np.where(asked, table.nodes, np.nan), points, 0.5),
        Block("weight", np.concatenate([table.anchor[:, None], weights], 1), ("anchor", *points), 0.0),
    ]
    if (table.slope_scale != 1).any():
        out.append(Block("slope scale", np.where(asked, table.slope_scale, np.nan), points, 1.0))
    if (table.sigma_scale != 1).any() or (table.anchor_scale != 1).any():
        scales = np.concatenate(
            [np.where(called, table.anchor_scale[:, None], np.nan), np.where(asked, table.sigma_scale, np.nan)], 1
        )
        out.append(Block("sigma scale", scales, ("anchor", *points), 1.0))
    if table.scales_guidance:
        factors = np.concatenate(
            [np.where(called, table.anchor_guidance[:, None], np.nan), np.where(asked, table.guidance_scale, np.nan)], 1
        )
        out.append(Block("guidance scale", factors, ("anchor", *points), 1.0))
    if table.memory.any():
        width = 1 + table.num_nodes
        columns = np.flatnonzero(table.memory.any(0))
        names = tuple(f"{k // width + 1} ago, " + ("anchor", *points)[k % width] for k in columns)
        out.append(Block("memory weight", np.where(table.memory != 0, table.memory, np.nan)[:, columns], names, 0.0))
    return [block for block in out if block.values.shape[1]]
