"""Tables of more steps that compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.recording import elementwise, normal
from helpers.tables import FAMILIES, SIGMAS

import epd
from epd.solvers.grow import split_step

NOISE = normal(5, 2, 3)
STEPS = range(4)


def end(table: epd.Table) -> torch.Tensor:
    return epd.solve(table.rule(), elementwise, NOISE, table.sigmas)


def of_full_memory(name: str) -> epd.Table:
    """The table with zeros for all steps that it does not remember."""
    table = FAMILIES[name]
    width = 1 + table.num_nodes
    reach = table.num_steps - 1 + (table.afs and table.calls[0] == 1)
    wider = reach * width - table.columns
    memory = np.pad(table.memory, ((0, 0), (0, reach * width - table.memory.shape[1])))
    lookahead = np.pad(table.effective_lookahead, ((0, 0), (0, 0), (0, wider)))
    return epd.Table(
        table.sigmas, table.nodes, table.weights, table.slope_scale, table.sigma_scale, afs=table.afs,
        anchor=table.anchor, memory=memory, lookahead=lookahead, calls=table.calls, anchor_scale=table.anchor_scale,
        consistent=table.consistent,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_split_step_leads_to_the_same_end(name: str, n: int, share: float) -> None:
    table = of_full_memory(name)
    torch.testing.assert_close(end(table), end(FAMILIES[name]), rtol=1e-12, atol=1e-12)
    middle = SIGMAS[n] * (SIGMAS[n + 1] / SIGMAS[n]) ** share
    for calls in (1, 2) if table.num_nodes else (1,):
        split = split_step(table, n, middle, calls)
        assert (split.num_steps, split.depth) == (5, table.depth + calls)
        torch.testing.assert_close(end(split), end(table), rtol=1e-10, atol=1e-10)
        again = split_step(split, 4 - n, split.sigmas[4 - n] ** 0.4 * split.sigmas[5 - n] ** 0.6)
        torch.testing.assert_close(end(again), end(table), rtol=1e-9, atol=1e-9)
