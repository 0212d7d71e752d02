"""Where a model bends, and the grids that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.counting import Counting, counting
from helpers.toy_models import toy_config, toy_mixture

from epd import GaussianMixture, own_model, rules, schedules, solve, unit_noise
from epd.distill.bends import Bends, bends_of
from epd.distill.growth import grown
from epd.distill.plan import make_plan
from epd.distill.starts import BENDS, Start, look_at, start_sigmas
from epd.distill.train import distill
from epd.solvers.exact import converged
from epd.solvers.registry import Ends
from epd.solvers.walk import Rule


def gaussian(std: float, scale: float = 1.0) -> GaussianMixture:
    return GaussianMixture(torch.zeros(1, 1, 4, 4), std * scale, sigma_min=0.01 * scale, sigma_max=100.0 * scale)


@pytest.mark.parametrize("std", [0.1, 1.0, 5.0])
def test_a_gaussian_bends_at_its_width(std: float) -> None:
    """Its slopes are foretold by the one before, so the grid stands on what a straight step misses of the noise."""
    model = gaussian(std)
    news = bends_of(model, Ends.of(model), torch.float64).news
    assert float(news.max()) < 1e-9, "slopes of one Gaussian are multiples of each other"
    means = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1) * std
    modes = GaussianMixture(means, std / 10, sigma_min=0.01, sigma_max=100)
    levels = bends_of(modes, Ends.of(modes)).grid(5)
    assert bool((levels.diff() < 0).all())
    assert std / 4 < float(levels[2]) < 4 * std


def test_a_scaled_model_has_the_scaled_grid() -> None:
    means = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, ten = (
        GaussianMixture(means * k, 0.3 * k, sigma_min=0.01 * k, sigma_max=80 * k) for k in (1.0, 10.0)
    )
    grids = [bends_of(m, Ends.of(m), torch.float64).grid(6) for m in (one, ten)]
    torch.testing.assert_close(grids[1], 10 * grids[0], rtol=1e-6, atol=0)


def test_a_grid_of_more_levels_covers_more_and_a_smaller_power_spreads() -> None:
    model = toy_mixture()
    bends = bends_of(model, Ends.of(model))
    few, many = bends.grid(3), bends.grid(9)
    assert many[0] > few[0] and many[-1] < few[-1]
    assert bends.grid(5, 0.2)[0] > bends.grid(5, 0.9)[0]
    share = bends.news.sqrt().cumsum(0) / bends.news.sqrt().sum()
    inside = bends.levels[1:].log().flip(0)
    at = torch.tensor([float(share.flip(0)[torch.searchsorted(inside, level.log())]) for level in few])
    torch.testing.assert_close(at, torch.tensor([1 / 6, 1 / 2, 5 / 6]), rtol=0, atol=0.08)


def test_a_straight_model_gets_an_even_grid() -> None:
    """The denoised is the same everywhere: nothing is news, so levels are even in log sigma."""
    model = own_model(lambda x, sigma: torch.zeros_like(x), (2, 3), 0.01, 100.0)
    grid = bends_of(model, Ends.of(model), torch.float64).grid(4)
    torch.testing.assert_close(grid.log().diff(), grid.log().diff()[:1].expand(3), rtol=0, atol=0.05)
    levels, ones = torch.logspace(2, -2, 5, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64)
    bends = Bends(levels, ones, ones[:1], ones[:1])
    torch.testing.assert_close(bends.grid(2), torch.tensor([10.0, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("model", [counting((1, 8, 8)), toy_mixture("flow")], ids=["ve", "flow"])
def test_a_look_is_taken_once_and_costs_few_rows(model: GaussianMixture) -> None:
    config = toy_config()
    look = look_at(config, model)
    first, second = (start_sigmas(config, model, 4, Start(BENDS, power), look) for power in (0.5, 0.35))
    assert (float(first[0]), float(first[-1])) == (model.sigma_max, model.sigma_min)
    assert bool((first.diff() < 0).all() and (second.diff() < 0).all()) and not torch.equal(first, second)
    if isinstance(model, Counting):
        assert sum(model.calls) == 8 * (40 + 41)


def test_starts_are_the_same_when_they_are_made_again() -> None:
    plans = [make_plan(toy_mixture(), toy_config(family="dense", points=2)) for _ in range(2)]
    assert [t.digest for t in plans[0].tables] == [t.digest for t in plans[1].tables]
    assert plans[0].tables[0].provenance.schedule == BENDS


def flow_that_knows(mean: float) -> GaussianMixture:
    """Two modes near a mean, which the network tells at once and the analytic slope does not."""
    means = torch.tensor([mean - 0.5, mean + 0.5], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    return GaussianMixture(means, 0.1, path="flow", sigma_min=0.01, sigma_max=1.0, name="flow")


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_analytic_slope_is_wrong_by_the_mean(mean: float) -> None:
    model = flow_that_knows(mean)
    assert bends_of(model, Ends.of(model), torch.float64).astray == pytest.approx(mean, abs=1e-9)
    wide = gaussian(1.0)
    assert bends_of(wide, Ends.of(wide), torch.float64).astray < 0.011


def test_where_the_analytic_slope_is_wrong_a_run_starts_from_the_best_hand_made_solver() -> None:
    config = toy_config(family="dense", points=1, calls=3)
    known, wrong = (make_plan(flow_that_knows(mean), config).tables for mean in (0.0, 3.0))
    assert len(wrong) == len(known) + 1
    assert {t.calls for t in known} == {(0, 1, 1, 1)} and wrong[0].calls == (1, 1, 1)
    model, noise = flow_that_knows(3.0), unit_noise(range(64), (1, 2, 2), torch.float64)
    end = converged(model, noise, [1.0, 0.01])[-1]

    def error(rule: Rule, sigmas: torch.Tensor) -> float:
        return float((solve(rule, model, noise, sigmas) - end).square().mean().sqrt())

    first = error(wrong[0].rule(), torch.tensor(wrong[0].sigmas))
    hand_made = [error(rules.euler(), schedules.flow_between(3, 0.01, 1.0, shift)) for shift in (1.0, 2.0, 3.0)]
    assert first <= min(hand_made) * 1.05
    # What is asked for by name is what is done.
    for own in ({"afs": True}, {"schedule": "flow"}, {"learn": ("anchor", "memory")}):
        tables = make_plan(model, config.model_copy(update=own)).tables
        assert all(t.calls == (0, 1, 1, 1) for t in tables)
    assert all(t.calls == (1, 1, 1) for t in make_plan(model, config.model_copy(update={"afs": False})).tables)


def test_a_start_with_a_call_learns_and_grows(tmp_path: Path) -> None:
    model = flow_that_knows(3.0)
    config = toy_config(family="dense", points=2, calls=2, optimizer="soap", iterations=20, screening=5)
    plan = make_plan(model, config)
    *_, last = distill(model, plan, cache=tmp_path)
    assert last.table.calls == plan.tables[last.state.best_start].calls == (1, 1)
    large = grown(last.table, 3)
    noise = unit_noise(range(8), (1, 2, 2), torch.float64)
    ends = [solve(t.rule(), model, noise, torch.tensor(t.sigmas)) for t in (last.table, large)]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)
