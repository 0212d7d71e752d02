"""The relaxed objective: a student may start anywhere within a radius of the noise (LD3, arXiv 2405.15506)."""

from __future__ import annotations

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd.denoisers.mixture import GaussianMixture
from epd.denoisers.noise import unit_noise
from epd.distill.config import DistillConfig
from epd.distill.cost import estimate
from epd.distill.objective import Chunk, end_residual, mean_square, nearest_start
from epd.distill.parameters import Parameters
from epd.distill.plan import make_plan
from epd.distill.teacher import POOL_SEEDS
from epd.distill.train import distill
from epd.solvers.exact import converged
from epd.solvers.parallel import Coefficients, parallel
from epd.solvers.solve import solve

GAUSSIAN = GaussianMixture(torch.zeros(1, 2, 3, dtype=torch.float64), 0.5)
NOISE = unit_noise(range(5), (2, 3), torch.float64)


def started(model: GaussianMixture) -> Coefficients:
    plan = make_plan(model, toy_config(family="ld3", calls=3, schedule="polynomial"))
    parameters = Parameters.of(plan.tables[0], plan.learn)
    return parameters.coefficients(parameters.start)


def solved(c: Coefficients, model: GaussianMixture, noise: Tensor) -> Tensor:
    return solve(parallel(c), model, noise, c.sigmas)


def lengths(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def test_on_a_gaussian_the_nearest_start_is_the_closed_form() -> None:
    """All solvers scale the noise there, x_N = a z; the teacher's end is b noise: z* = noise + min(r, ..) along it."""
    c = started(GAUSSIAN)
    scale = float((solved(c, GAUSSIAN, NOISE) / NOISE).mean())
    for aim, radius in ((1.7, 0.05), (0.4, 0.3)):  # both out of reach
        chunk = Chunk(GAUSSIAN, NOISE, aim * scale * NOISE[None])
        away = radius if aim > 1 else -radius
        expected = NOISE + away * NOISE / lengths(NOISE)[:, None, None]
        torch.testing.assert_close(nearest_start(c, chunk, radius), expected, rtol=1e-9, atol=1e-9)
    within = Chunk(GAUSSIAN, NOISE, 1.2 * scale * NOISE[None])  # each move of Polyak's halves the way there
    torch.testing.assert_close(nearest_start(c, within, 100.0), 1.15 * NOISE, rtol=1e-9, atol=1e-9)


def test_no_sample_is_further_away_and_none_leaves_the_ball() -> None:
    model, noise = toy_mixture(), unit_noise(range(64), toy_mixture().shape, torch.float64)
    c = started(model)
    ends = solved(c, model, noise.roll(1, 0))  # others' end points: far, through bends and modes
    chunk = Chunk(model, noise, ends[None])
    strict = lengths(solved(c, model, noise) - ends)
    for radius in (0.01, 0.3, 3.0):
        start = nearest_start(c, chunk, radius)
        relaxed = lengths(solved(c, model, start) - ends)
        assert bool((relaxed <= strict).all()) and float(relaxed.mean()) < float(strict.mean())
        assert float(lengths(start - noise).max()) <= radius * (1 + 1e-12)


def test_the_gradient_is_that_of_the_minimum() -> None:
    """d/dc min_z d(c, z) = the partial derivative at z*, where z* lies on the border and moves with c."""
    plan = make_plan(GAUSSIAN, toy_config(family="ld3", calls=3, schedule="polynomial"))
    parameters = Parameters.of(plan.tables[0], plan.learn)
    chunk = Chunk(GAUSSIAN, NOISE, 0.3 * NOISE[None])

    def loss(vector: Tensor) -> Tensor:
        return mean_square(end_residual(relax=0.2), parameters.coefficients(vector), [chunk])

    vector = parameters.start.clone().requires_grad_()
    residual = end_residual(relax=0.2)(parameters.coefficients(vector), GAUSSIAN, chunk)
    (gradient,) = torch.autograd.grad(residual.square().mean(), vector)
    for i, unit in enumerate(torch.eye(len(vector), dtype=torch.float64)):
        difference = (loss(vector.detach() + 1e-5 * unit) - loss(vector.detach() - 1e-5 * unit)) / 2e-5
        assert float(gradient[i]) == pytest.approx(float(difference), rel=1e-5, abs=1e-8)


def test_each_objective_is_best_at_its_own_distance() -> None:
    model, noise = toy_mixture(), unit_noise(range(POOL_SEEDS, POOL_SEEDS + 256), toy_mixture().shape, torch.float64)
    chunk, tables = Chunk(model, noise, converged(model, noise, [model.sigma_max, model.sigma_min])[1:]), {}
    for relax in (0.0, 0.3):
        config = toy_config(family="ld3", calls=2, iterations=120, screening=1, schedule="polynomial", relax=relax,
                            optimizer="soap", validate_every=10**6)  # fmt: skip
        *_, last = distill(model, make_plan(model, config))
        tables[relax] = last.table
    distance = {
        (learned, judged): float(mean_square(end_residual(relax=judged), table.coefficients(), [chunk]))
        for learned, table in tables.items() for judged in (0.0, 0.3)
    }  # fmt: skip
    assert distance[0.0, 0.0] < 0.98 * distance[0.3, 0.0] and distance[0.3, 0.3] < 0.98 * distance[0.0, 0.3]


def test_it_needs_gradients_of_the_end_point_and_says_what_it_costs() -> None:
    for wrong in ({"optimizer": "gauss-newton"}, {"objective": "steps"}):
        with pytest.raises(ValueError, match=r"relax = 0\.5 with .*: use objective = 'end' with 'soap' or"):
            DistillConfig.model_validate({"relax": 0.5, **wrong})
    with pytest.raises(ValueError, match="relax"):
        DistillConfig(relax=-0.1)
    assert DistillConfig(relax=0.1, points=1).resolved(10**6).optimizer == "soap"
    strict, relaxed = (
        estimate(toy_mixture(), make_plan(toy_mixture(), toy_config(optimizer="soap", relax=r, validate_every=10**6)))
        for r in (0.0, 0.5)
    )
    assert 3 * relaxed.training_evaluations == 10 * strict.training_evaluations
