"""Walks that begin in the middle of a trajectory: exact where the denoised does not change."""

from __future__ import annotations

import pytest
import torch
from helpers.recording import Recorder, normal
from helpers.tables import FAMILIES, SIGMAS
from torch import Tensor

import epd
from epd.pipelines.kdiffusion import sample_epd
from epd.solvers.answers import batched
from epd.solvers.late import late_walk
from epd.solvers.walk import Ask, Restart, State, drive, walk

GRID = torch.tensor(SIGMAS, dtype=torch.float64)
CENTRE = normal(2, 3, seed=5)
BEGINS = range(1, 4)


def constant(x: Tensor, sigma: Tensor) -> Tensor:
    return CENTRE.expand_as(x)


def ode(x: Tensor, begin: int, n: int) -> Tensor:
    """(x - D) / sigma does not change along it."""
    return CENTRE + (x - CENTRE) * (SIGMAS[n] / SIGMAS[begin])


def late(table: epd.Table, x: Tensor, begin: int) -> list[State]:
    asking = late_walk(table.rule(), x, GRID, begin, table.columns, table.consistent)
    return list(drive(asking, batched(constant)))


@pytest.mark.parametrize("begin", BEGINS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_step_is_exact_where_the_denoised_is_constant(name: str, begin: int) -> None:
    """And, where weights sum to one, all that follow; free weights were learned for a trajectory from the start."""
    table, x = FAMILIES[name], normal(4, 2, 3)
    states = late(table, x, begin)
    assert [state.step for state in states] == list(range(begin + 1, 5))
    exact = states if table.consistent and bool((table.slope_scale == 1).all()) else states[:1]
    if not table.consistent or exact is states:
        for state in exact:
            torch.testing.assert_close(state.x, ode(x, begin, state.step), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("begin", BEGINS)
@pytest.mark.parametrize("name", [name for name, table in FAMILIES.items() if not table.consistent])
def test_free_weights_go_on_as_if_the_whole_past_had_that_slope(name: str, begin: int) -> None:
    """What follows is the walk of the same table from a past of that one slope, told the plain level at first."""
    table, x, recorder = FAMILIES[name], normal(4, 2, 3), Recorder(constant)
    asking = late_walk(table.rule(), x, GRID, begin, table.columns, table.consistent)
    states = list(drive(asking, batched(recorder)))
    assert torch.equal(recorder.calls[0][1], GRID[begin].expand(4))
    slope = (x - CENTRE) / SIGMAS[begin]
    past = (slope,) * table.columns
    expected = list(drive(walk(table.rule(), states[0].x, GRID, begin + 1, past), batched(constant)))
    assert [s.step for s in expected] == [s.step for s in states[1:]]
    assert all(torch.equal(a.x, b.x) for a, b in zip(states[1:], expected, strict=True))


@pytest.mark.parametrize("name", ["memory", "dense"])
def test_a_restart_of_the_first_question_or_state_counts(name: str) -> None:
    table = FAMILIES["anchor and memory" if name == "memory" else name]
    x, other = normal(4, 2, 3), normal(4, 2, 3, seed=9)
    asking, reply, restarted = late_walk(table.rule(), x, GRID, 2, table.columns, table.consistent), None, False
    try:
        while True:
            event = asking.send(reply)
            reply = batched(constant)(event) if isinstance(event, Ask) else None
            if not restarted:
                reply, restarted = Restart(other), True
    except StopIteration as stop:
        assert torch.equal(stop.value, late(table, other, 2)[-1].x)


@pytest.mark.parametrize("begin", range(4))
@pytest.mark.parametrize("name", FAMILIES)
def test_the_k_diffusion_sampler_begins_anywhere(name: str, begin: int) -> None:
    table, x, seen = FAMILIES[name], normal(4, 2, 3), []
    sigmas = torch.tensor([*SIGMAS[begin:], 0.0], dtype=torch.float64)
    end = sample_epd(constant, x, sigmas, callback=seen.append, disable=True, table=table)
    assert torch.equal(end, late(table, x, begin)[-1].x)
    assert [float(step["sigma"]) for step in seen] == SIGMAS[begin:] and len(seen) == 5 - begin
    if begin == 0 and table.calls[0] == 0:
        analytic = x * (1 - SIGMAS[0] / (1 + SIGMAS[0] ** 2) ** 0.5)
        torch.testing.assert_close(seen[0]["denoised"], analytic)
