"""GITS: the cheapest of all schedules along a teacher's trajectories, and what it was found from."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.counting import Counted
from helpers.toy_models import toy_mixture
from torch import Tensor

from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Path
from epd.distill.gits import Gits, gits_of
from epd.distill.teacher import POOL_SEEDS
from epd.evaluation.handmade import candidate_schedules
from epd.solvers.exact import converged
from epd.solvers.registry import Ends

PATHS: tuple[Path, ...] = ("ve", "flow")


def ends(path: Path) -> tuple[float, float]:
    return toy_mixture(path).sigma_min, toy_mixture(path).sigma_max


def found(path: Path, fine: int = 40) -> Gits:
    model = toy_mixture(path)
    return gits_of(model, Ends.of(model), torch.float64, samples=16, fine=fine)


@pytest.mark.parametrize("later", [1.0, 1.15, 0.8])
def test_the_plan_is_the_best_of_all_schedules(later: float) -> None:
    gits = found("ve", fine=10)
    for steps in (1, 2, 3, 5, 10):
        inner = itertools.combinations(range(1, 10), steps - 1)

        def value(path: tuple[int, ...]) -> float:
            jumps = zip(path, path[1:], strict=False)
            return sum(later**k * float(gits.costs[i, j]) for k, (i, j) in enumerate(jumps))

        best = min(((0, *places, 10) for places in inner), key=value)
        assert gits.schedule(steps, later).tolist() == gits.levels[list(best)].tolist()


@pytest.mark.parametrize("path", PATHS)
def test_costs_are_errors_of_euler_steps_from_the_teachers_states(path: Path) -> None:
    model, gits = toy_mixture(path), found(path)
    noise = unit_noise(range(POOL_SEEDS, POOL_SEEDS + 16), model.shape, torch.float64)
    states = converged(model, noise, gits.levels, 1e-7, 1e-7)
    for i, j in ((0, 1), (0, 40), (7, 19), (20, 33), (39, 40)):
        slope = (states[i] - model(states[i], gits.levels[i])) / gits.levels[i]
        error = states[i] + (gits.levels[j] - gits.levels[i]) * slope - states[j]
        exact = float(error.flatten(1).norm(dim=1).mean())
        # The shortest jumps err by no more than the teacher, whose first step is one of Euler's.
        assert float(gits.costs[i, j]) == pytest.approx(exact, rel=0.05, abs=2e-3)
    assert torch.equal(gits.costs.isfinite(), torch.ones(41, 41).triu(1).bool())


@pytest.mark.parametrize("path", PATHS)
def test_euler_errs_less_on_it_than_on_any_usual_schedule(path: Path) -> None:
    """By what it minimises: the sum of local errors along the trajectories, measured afresh, not from its costs."""
    model, gits = toy_mixture(path), found(path)
    noise = unit_noise(range(POOL_SEEDS, POOL_SEEDS + 16), model.shape, torch.float64)

    schedules = {
        steps: [gits.schedule(steps), *(make(steps) for make in candidate_schedules(path, *ends(path)).values())]
        for steps in (3, 5, 8)
    }
    levels = torch.cat([sigmas for row in schedules.values() for sigmas in row]).unique().flip(0)
    states = dict(zip(levels.tolist(), converged(model, noise, levels, 1e-7, 1e-7), strict=True))

    def local(sigmas: Tensor) -> float:
        total = 0.0
        for sigma, then in zip(sigmas, sigmas[1:], strict=False):
            x = states[float(sigma)]
            error = x + (then - sigma) * (x - model(x, sigma)) / sigma - states[float(then)]
            total += float(error.flatten(1).norm(dim=1).mean())
        return total

    for own, *usual in schedules.values():
        assert local(own) == pytest.approx(gits.cost(own), rel=0.02)
        assert all(local(own) < local(sigmas) for sigmas in usual)


def test_straight_paths_cost_nothing() -> None:
    class Straight(Counted):
        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            self.rows += len(x)
            return self.means[0].expand_as(x)

    model = Straight(torch.full((1, 2), 0.7), 0.1, sigma_min=0.02, sigma_max=20.0)
    gits = gits_of(model, Ends.of(model), torch.float64, samples=4, fine=12)
    costs = gits.costs[gits.costs.isfinite()]
    assert len(costs) == 78 and float(costs.max()) < 1e-12
    assert model.rows == gits.evaluations == 4 * 12


def test_it_evaluates_what_it_says_and_large_samples_are_few() -> None:
    model = Counted(torch.zeros(2, 8, 8), 0.5, sigma_min=0.02, sigma_max=20.0)
    assert gits_of(model, Ends.of(model), samples=7, fine=9).evaluations == model.rows == 63
    large = Counted(torch.zeros(2, 2**18), 0.5, sigma_min=0.02, sigma_max=20.0)
    assert gits_of(large, Ends.of(large), fine=2).evaluations == large.rows == 4 * 2


def test_what_is_refused() -> None:
    gits = Gits(torch.tensor([2.0, 1.0, 0.5]), torch.zeros(3, 3))
    for steps in (0, 3):
        with pytest.raises(ValueError, match="has 1 to 2 steps"):
            gits.schedule(steps)
    for later in (0.0, math.inf):
        with pytest.raises(ValueError, match="must be positive"):
            gits.schedule(1, later)
