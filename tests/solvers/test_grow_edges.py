"""Splitting a step: which states stay, what the larger table is, and what cannot be split."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recording import elementwise, normal
from helpers.tables import FAMILIES, SIGMAS, dense_table, full_table

import epd
from epd.solvers.grow import split_step

NOISE = normal(5, 2, 3)


def states(table: epd.Table) -> dict[float, torch.Tensor]:
    """The state at each sigma after a step."""
    steps = epd.trajectory(table.rule(), elementwise, NOISE, table.sigmas)
    return dict(zip(table.sigmas.tolist(), steps, strict=True))


@pytest.mark.parametrize("n", range(10))
@pytest.mark.parametrize("width", [0, 1, 2])
def test_all_states_of_a_dense_table_stay(width: int, n: int) -> None:
    table = dense_table(width, calls=9)
    split = split_step(table, n, float(np.sqrt(table.sigmas[n] * table.sigmas[n + 1])))
    assert (split.depth, split.nfe, split.num_parallel) == (10, table.nfe + 1 + width, table.num_parallel)
    before, after = states(table), states(split)
    assert len(after) == len(before) + 1
    for sigma, x in before.items():
        torch.testing.assert_close(after[sigma], x, rtol=1e-9, atol=1e-9)


def test_what_was_not_split_keeps_its_numbers() -> None:
    table = dataclasses.replace(dense_table(2), provenance=epd.Provenance(model="m"))
    split = split_step(table, 2, 1.5)
    assert split.sigmas.tolist() == [40, 9, 2.5, 1.5, 0.8, 0.1]
    assert split.calls == (0, 1, 1, 1, 1)
    assert split.provenance == table.provenance and not split.consistent
    kept = {"nodes": table.nodes, "sigma_scale": table.sigma_scale, "weights": table.weights, "anchor": table.anchor}
    for name, rows in kept.items():
        np.testing.assert_allclose(np.delete(getattr(split, name), [2, 3], 0), np.delete(rows, 2, 0), rtol=1e-14)
    assert split.anchor_scale.tolist() == [*table.anchor_scale[:3], 1.0, *table.anchor_scale[3:]]
    assert split.anchor[3] == 0  # the new call has no weight yet


def test_sums_stay_one_where_they_were_and_slopes_are_not_scaled() -> None:
    table = FAMILIES["no first call"]
    wide = dataclasses.replace(table, memory=np.pad(table.memory, ((0, 0), (0, 6))),
                               lookahead=np.pad(table.effective_lookahead, ((0, 0), (0, 0), (0, 6))))  # fmt: skip
    for n in range(4):
        split = split_step(wide, n, float(np.sqrt(SIGMAS[n] * SIGMAS[n + 1])), 2)
        assert split.consistent
        np.testing.assert_allclose(split.moments()[:, 0], 1, rtol=1e-12)
    scaled = dataclasses.replace(wide, slope_scale=np.full((4, 2), 1.1))
    assert not split_step(scaled, 1, 5.0).consistent


def test_a_point_that_is_not_evaluated_stays_so_or_gets_a_direction() -> None:
    table = dense_table(2)
    directions = np.ones((4, 2, 1))
    directions[1, 0] = 0  # later steps weigh the slot no more
    memory, lookahead = table.memory.copy(), table.lookahead * directions  # type: ignore[operator]
    memory[[2, 3], [1, 4]] = 0
    lookahead[2, :, 2] = lookahead[3, :, 5] = 0
    bare = dataclasses.replace(table, memory=memory, lookahead=lookahead, weights=table.weights * directions[..., 0])
    assert not bare.used[1].lookahead[0]
    for n in range(4):
        split = split_step(bare, n, float(np.sqrt(SIGMAS[n] * SIGMAS[n + 1])))
        torch.testing.assert_close(states(split)[0.1], states(bare)[0.1], rtol=1e-10, atol=1e-10)


IMPOSSIBLE: dict[str, tuple[epd.Table, tuple[Any, ...]]] = {
    r"n = 4 is no step of the table: give 0 to 3": (dense_table(), (4, 0.05)),
    r"n = -1 is no step of the table: give 0 to 3": (dense_table(), (-1, 0.2)),
    r"sigma = 0.8 is not inside step 2: take one between 2.5 and 0.8": (dense_table(), (2, 0.8)),
    r"sigma = 2.5 is not inside step 2": (dense_table(), (2, 2.5)),
    r"sigma = 9 is not inside step 2": (dense_table(), (2, 9.0)),
    r"sigma = nan is not inside step 2": (dense_table(), (2, float("nan"))),
    r"is where step 0 has a fan point: take another one beside it": (FAMILIES["epd"], (0, None)),
    r"calls = \[0, 1, 1, 3, 1\] must be 1 or 2": (dense_table(), (2, 1.5, 3)),
    r"calls = \[0, 1, 1, 0, 1\]: only the first": (dense_table(), (2, 1.5, 0)),
    r"two-call steps but nodes has no columns: give calls=1": (dense_table(0), (2, 1.5, 2)),
    r"when step 3 is split, step 4 of the new table weighs slopes of 1 steps ago, and the table remembers 0": (
        FAMILIES["epd"], (3, 0.3),
    ),
    r"when step 0 is split, step 3 of the new table weighs slopes of 3 steps ago, and the table remembers 2": (
        full_table(), (0, 20.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_what_cannot_be_split_names_the_reason(message: str) -> None:
    table, (n, sigma, *calls) = IMPOSSIBLE[message]
    if sigma is None:
        sigma = float(table.sigmas[n + 1] ** table.nodes[n, 0] * table.sigmas[n] ** (1 - table.nodes[n, 0]))
    with pytest.raises(ValueError, match=message):
        split_step(table, n, sigma, *calls)
