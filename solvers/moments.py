"""What the weights of a step sum to, and their first moment: its formal order."""

from __future__ import annotations

import numpy as np

from .table import Table
from .table_checks import Array


def moments_of(table: Table) -> Array:
    """(N, 2): sum of the update weights, and their first moment over u = (sigma_j - sigma) / (sigma' - sigma).

    A step is consistent when the first is 1 and second order when the second is 1/2 (with unit sigma_scale and
    guidance).
    """
    sigmas, past_weights = table.sigmas, np.pad(table.memory, ((0, 0), (0, table.columns - table.memory.shape[1])))
    out = np.zeros((table.num_steps, 2))
    for n in range(table.num_steps):
        step = sigmas[n + 1] - sigmas[n]
        u = (_sigmas_of(table, n)[1:] - sigmas[n]) / step
        w = table.weights[n] * table.slope_scale[n]
        total = [table.anchor[n] + w.sum(), float(w @ u)]
        for k in table.used[n].memory:
            past, slot = divmod(k, 1 + table.num_nodes)
            earlier = n - 1 - past
            sigma = sigmas[0] if earlier < 0 else _sigmas_of(table, earlier)[slot]
            total[0] += past_weights[n, k]
            total[1] += past_weights[n, k] * (sigma - sigmas[n]) / step
        out[n] = total
    return out


def _sigmas_of(table: Table, n: int) -> Array:
    """Where the 1 + J slopes of step n are taken."""
    sigmas, r = table.sigmas, table.nodes[n]
    return np.concatenate([sigmas[n : n + 1], sigmas[n + 1] ** r * sigmas[n] ** (1 - r)])
