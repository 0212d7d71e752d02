"""Where a policy starts: at the given table unless the best is asked for, and then at what earns most, resumed too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.toy_refine import toy_refine_config, toy_table, toy_task

from epd import Table
from epd.rl.refine import refine
from epd.rl.run import checkpoint_of, identity_of_task, refined, state_of
from epd.rl.starts import best_start, start_tables
from epd.runs.processes import Workers
from epd.solvers.solve import solve

BEST = {"start": "best", "steps": 2, "evaluate_every": 1, "converged": 0}


def poor_table() -> Table:
    """Overshoots by half."""
    return Table([20.0, 3.0, 0.6, 0.02], [[]] * 3, [[]] * 3, anchor=[1.5] * 3, calls=1, consistent=False)


def test_starts_are_as_deep_as_the_given_table_and_first_it_itself() -> None:
    given = toy_table()
    tables = start_tables(toy_task(), given, toy_refine_config(**BEST))
    assert tables[0] is given and len(tables) > 2
    assert {(table.depth, table.nfe) for table in tables} == {(3, 3)}
    assert start_tables(toy_task(), given, toy_refine_config()) == (given,)


def test_the_best_start_is_the_one_that_earns_most() -> None:
    task, config = toy_task(), toy_refine_config(**BEST)
    tables = start_tables(task, poor_table(), config)
    chosen = best_start(task, tables, config, Workers())
    assert chosen > 0
    # Judged anew, on other noise and by plain solves: nearer to the converged ends than the given table by far.
    draws = task.tested(256)
    errors = []
    for table in (tables[0], tables[chosen]):
        rollout = task.roll_out(table.coefficients(), draws, torch.float64)
        errors.append(-float(task.scores["closeness"](rollout).mean()))
    assert errors[1] < 0.7 * errors[0]
    # Among itself and poorer ones the given table stays.
    assert best_start(task, (tables[chosen], poor_table()), config, Workers()) == 0


def test_other_tables_are_starts_too_grown_where_they_make_fewer_calls() -> None:
    config = toy_refine_config(**BEST)
    fine = toy_table()
    fewer = Table([20.0, 2.0, 0.02], [[]] * 2, [[]] * 2, anchor=[1.0] * 2, memory=[[0.0]] * 2, calls=1)
    task = replace(toy_task(), starts=(fine, fewer))
    tables = start_tables(task, poor_table(), config)
    assert tables[1] is fine and [table.depth for table in tables[:3]] == [3, 3, 3]
    noise = torch.randn(4, *task.model.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = task.model.for_seeds(range(4))
    ends = [solve(table.rule(), model, noise, table.sigmas) for table in (fewer, tables[2])]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)  # grown: the same, in more calls
    assert best_start(task, tables[:2], config, Workers()) == 1
    (first, _) = refine(replace(task, starts=(fine,)), poor_table(), config)
    assert first.state.start > 0
    one, other = (identity_of_task(replace(toy_task(), starts=s), fine, config) for s in ((), (fewer,)))
    assert one != other and {**other, "starts": None} == {**one, "starts": None}
    with pytest.raises(ValueError, match="start = 'best'"):
        start_tables(task, poor_table(), toy_refine_config())
    with pytest.raises(ValueError, match="3 calls, 3 evaluations, the given one 2, 2"):
        start_tables(replace(task, starts=(fine,)), fewer, config)


def test_a_start_that_leaves_the_finite_numbers_is_none() -> None:
    task, config = toy_task(), toy_refine_config(**BEST, dtype="float32")
    wild = replace(poor_table(), anchor=[1e30] * 3)
    assert best_start(task, (poor_table(), wild), config, Workers()) == 0


def test_a_run_goes_on_from_its_start_and_its_result_descends_from_the_given_table(tmp_path: Path) -> None:
    task, config, given = toy_task(), toy_refine_config(**BEST), poor_table()
    first, last = refine(task, given, config)
    assert first.state.start == last.state.start > 0
    assert first.evaluation is not None and first.evaluation.interval.low > 0  # against the given table
    resumed = state_of(checkpoint_of(first.state), tmp_path)
    (again,) = refine(task, given, config, resumed)
    assert torch.equal(again.state.vector, last.state.vector)
    table = refined(task, given, config, last.state)
    assert table != given and table.provenance.parent == given.digest
    assert table.depth == given.depth
    noise = torch.randn(4, *task.model.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert bool(solve(table.rule(), task.model.for_seeds(range(4)), noise, table.sigmas).isfinite().all())


def test_safe_exploration_stays_near_the_given_table() -> None:
    with pytest.raises(ValueError, match="allowed = 0.5 .* start = 'best'"):
        toy_refine_config(start="best", allowed=0.5)
