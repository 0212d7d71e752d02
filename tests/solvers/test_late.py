"""A walk that begins in the middle has no slopes to remember: the first one stands in for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.recording import elementwise, normal
from helpers.tables import FAMILIES, SIGMAS, full_table, told_table
from torch import Tensor

import epd
from epd.solvers.answers import batched
from epd.solvers.late import late_start
from epd.solvers.walk import Ask, Restart, drive, walk

GRID = torch.tensor(SIGMAS, dtype=torch.float64)
CLEAN, NOISE = torch.full((2, 3), 0.7, dtype=torch.float64), normal(2, 3)
STARTS = range(1, len(SIGMAS) - 1)
# Slope scales are beside the weights that sum to one, so that with them no step is exact.
UNIT = {name: dataclasses.replace(table, slope_scale=None) for name, table in FAMILIES.items()}
EXACT = {name: table for name, table in {**UNIT, "told": told_table()}.items() if table.consistent}
FREE = {name: table for name, table in FAMILIES.items() if not table.consistent}


def late(table: epd.Table, begin: int) -> epd.Rule:
    return late_start(table.rule(), begin, table.columns, table.consistent) if table.columns else table.rule()


def walked(rule: epd.Rule, x: Tensor, begin: int, denoiser: epd.Denoiser, levels: Tensor = GRID) -> list[Tensor]:
    return [x, *(state.x for state in drive(walk(rule, x, levels, begin), batched(denoiser)))]


def clean(x: Tensor, sigma: Tensor) -> Tensor:
    return CLEAN[:1].expand_as(x)


@pytest.mark.parametrize("begin", STARTS)
@pytest.mark.parametrize("name", EXACT)
def test_where_the_denoised_is_constant_every_state_is_exact(name: str, begin: int) -> None:
    states = walked(late(EXACT[name], begin), CLEAN + GRID[begin] * NOISE, begin, clean)
    assert len(states) == len(GRID) - begin
    for x, sigma in zip(states, GRID[begin:], strict=True):
        torch.testing.assert_close(x, CLEAN + sigma * NOISE, rtol=0, atol=1e-12)


@pytest.mark.parametrize("begin", STARTS)
@pytest.mark.parametrize("name", FREE)
def test_with_free_sums_the_first_step_is_eulers_and_the_rest_the_tables(name: str, begin: int) -> None:
    table, x = FREE[name], CLEAN + GRID[begin] * NOISE
    states = walked(late(table, begin), x, begin, elementwise)
    slope = (x - elementwise(x, GRID[begin].expand(len(x)))) / GRID[begin]
    euler = x + (GRID[begin + 1] - GRID[begin]) * slope
    torch.testing.assert_close(states[1], euler, rtol=0, atol=1e-12)
    rest = drive(walk(table.rule(), euler, GRID, begin + 1, (slope,) * table.columns), batched(elementwise))
    torch.testing.assert_close(states[1:], [euler, *(state.x for state in rest)], rtol=0, atol=1e-12)
    own = walked(table.rule(), x, begin, elementwise) if not table.columns else None
    assert own is None or torch.equal(own[-1], states[-1])


@pytest.mark.parametrize("begin", STARTS)
@pytest.mark.parametrize("calls", [1, 2])
def test_what_it_asks(calls: int, begin: int) -> None:
    """The state alone, told its own level, then the rest of the step: a fan that needs the state's slope first."""
    table = dataclasses.replace(full_table(calls), anchor_scale=[1.3] * 4)
    asks: list[Ask] = []

    def answer(ask: Ask) -> Tensor:
        asks.append(ask)
        return batched(elementwise)(ask)

    list(drive(walk(late(table, begin), NOISE, GRID, begin), answer))
    assert torch.equal(asks[0].network_sigma, GRID[begin : begin + 1])
    widths = [1, *([2] if calls == 2 else []), *([3] if calls == 1 else [1, 2]) * (3 - begin)]
    assert [len(ask.points) for ask in asks] == widths


@pytest.mark.parametrize("name", ["told", "dense"])
def test_every_sample_may_have_noise_levels_of_its_own(name: str) -> None:
    table = {**EXACT, **FREE}[name]
    levels = GRID[:, None] * torch.tensor([1.0, 1.1], dtype=torch.float64)
    together = walked(late(table, 1), NOISE, 1, elementwise, levels)[-1]
    for i in range(2):
        alone = walked(late(table, 1), NOISE[i : i + 1], 1, elementwise, levels[:, i])[-1]
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["told", "dense"])
def test_another_state_in_its_place_begins_the_step_again(name: str) -> None:
    table, changed = {**EXACT, **FREE}[name], CLEAN + GRID[2] * NOISE
    answers: list[Any] = [Restart(changed)]

    def answer(ask: Ask) -> Any:  # noqa: ANN401
        return answers.pop() if answers else batched(elementwise)(ask)

    *_, last = drive(walk(late(table, 2), NOISE, GRID, 2), answer)
    assert torch.equal(last.x, walked(late(table, 2), changed, 2, elementwise)[-1])
