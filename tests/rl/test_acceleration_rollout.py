"""Trajectories that are learned from: what is told of the decisions is what was decided, however samples are dealt."""

from __future__ import annotations

import pytest
import torch
from helpers.accelerating import Everything
from helpers.heads import layout_of, undecided
from helpers.toy_models import toy_mixture

import epd
from epd import Table
from epd.accelerators.accelerate import accelerators_of
from epd.accelerators.decisions import jump_of
from epd.accelerators.heads import trajectory_log_prob
from epd.denoisers.digits import digits
from epd.denoisers.rows import limit_rows
from epd.rl.acceleration_rollout import Trip, costs_of_levels, travel, with_network
from epd.rl.closeness import Closeness
from epd.rl.task import Draws, Task
from epd.solvers.schedules import logsnr

STEPS, COUNT = 6, 12
TABLE = Table(logsnr(STEPS, 0.02, 20.0), [[]] * STEPS, [[]] * STEPS, anchor=[1.0] * STEPS, calls=1)
DRAWS = Draws(tuple(range(COUNT)), tuple(range(100, 100 + COUNT)))
HEADS = undecided(layout_of(1, STEPS))


def task() -> Task:
    model = limit_rows(toy_mixture())
    return with_network(Task(model, {"closeness": Closeness(model, 1e-3)}))


def trip(rows: slice = slice(0, COUNT)) -> Trip:
    return travel(task(), TABLE, HEADS, DRAWS[rows], list(range(COUNT))[rows], torch.float64)


def test_decisions_and_calls_fit_together() -> None:
    """Replayed by hand: who is in a jump decides nothing, who reuses is not counted, the first call always is."""
    found = trip()
    step, cache = found.taken["step"], found.taken["cache"]
    jumps = jump_of(step.action, step.seen.remaining)
    calls, asked = [], torch.zeros(STEPS, COUNT, dtype=torch.bool)
    for b in range(COUNT):
        own = {int(n): int(j) for n, j, s in zip(step.steps, jumps, step.samples, strict=True) if s == b}
        reused = {int(n): int(a) for n, a, s in zip(cache.steps, cache.action, cache.samples, strict=True) if s == b}
        n = count = 0
        while n < STEPS:
            assert (n in reused) == (n > 0) and (n in own) == (n < STEPS - 1)
            asked[n, b] = n == 0 or not reused[n]
            count += bool(asked[n, b])
            n += own.get(n, 1)
        calls.append(count)
        assert max(own) < STEPS - 1
    assert torch.equal(found.computed, asked)
    assert found.calls.tolist() == calls and 1 < len(set(calls))


def test_what_is_computed_again_of_the_decisions_is_what_it_was() -> None:
    """The ratio of the first update is one; samples without a decision have none."""
    found, part = trip(), trip(slice(4, 8))
    whole, _ = trajectory_log_prob(HEADS, found.taken, COUNT)
    again, _ = trajectory_log_prob(HEADS, part.taken, 4)
    torch.testing.assert_close((again - whole[4:8]).exp(), torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(part.rollout.states, found.rollout.states[4:8], atol=1e-9, rtol=1e-9)
    assert torch.equal(part.calls, found.calls[4:8])


def test_the_model_is_as_before_with_what_it_had() -> None:
    own = task()
    had = Everything()
    epd.accelerate(own.model, had)
    travel(own, TABLE, HEADS, DRAWS, None, torch.float64)
    assert accelerators_of(own.model) == (had,)


def test_the_likeliest_choices_draw_nothing() -> None:
    found = travel(task(), TABLE, HEADS, DRAWS, None, torch.float64)
    assert not found.taken
    torch.testing.assert_close(
        travel(task(), TABLE, HEADS, DRAWS[3:5], None, torch.float64).rollout.states, found.rollout.states[3:5],
        atol=1e-9, rtol=1e-9,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [5])
def test_a_model_with_a_limit_keeps_it(rows: int) -> None:
    model = limit_rows(toy_mixture(), rows)
    limited = with_network(Task(model, {"closeness": Closeness(model, 1e-3)}))
    assert limited.model.fixed == rows
    with pytest.raises(ValueError, match="larger limit of rows"):
        travel(limited, TABLE, HEADS, DRAWS, None, torch.float64)


def test_levels_cost_what_they_keep_and_are_decided_on_where_all_else_is_computed() -> None:
    model = limit_rows(digits())
    own = Task(model, {"closeness": Closeness(model, 1e-3)})
    table = Table(logsnr(3, 0.02, 5.0), [[]] * 3, [[]] * 3, anchor=[1.0] * 3, calls=1)
    one, half = costs_of_levels(own, table, (0.9999, 0.3), 4, torch.float32, count=2)
    assert 0.5 < half < one <= 1
    layout = layout_of(1, 3, heads=("cache", "sparse"), levels=(0.9999, 0.3), costs=(one, half), block=4)
    found = travel(own, table, undecided(layout), DRAWS, list(range(COUNT)), torch.float32)
    cache, sparse = found.taken["cache"], found.taken["sparse"]
    reused = {(int(b), int(n)) for b, n, a in zip(cache.samples, cache.steps, cache.action, strict=True) if a}
    asked = {(int(b), int(n)) for b, n in zip(sparse.samples, sparse.steps, strict=True)}
    assert reused and asked == {(b, n) for b in range(COUNT) for n in range(3)} - reused
    cost = torch.tensor([1.0, one, half], dtype=torch.float64)[sparse.action]
    torch.testing.assert_close(found.calls, torch.zeros(COUNT).double().index_add(0, sparse.samples, cost))
