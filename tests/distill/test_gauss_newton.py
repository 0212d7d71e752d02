"""Gauss-Newton: replayed calls change no bit, the normal equations are those of the definition, steps descend."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd import solve, trajectory
from epd.denoisers.noise import unit_noise
from epd.distill import gauss_newton
from epd.distill.config import ResolvedConfig
from epd.distill.families import structure
from epd.distill.gauss_newton import RecordingDenoiser, ReplayingDenoiser, damped_step, first_reached, normal_equations
from epd.distill.initial import initial_table
from epd.distill.objective import Chunk, Residual, end_residual, steps_loss
from epd.distill.parameters import Parameters
from epd.distill.state import TrainerState
from epd.runs.processes import Workers
from epd.solvers.exact import converged
from epd.solvers.parallel import parallel

EPS = 1e-6


def problem(**changes: object) -> tuple[Parameters, Chunk]:
    model, config = toy_mixture(), toy_config(**changes)
    table = initial_table(config, model)
    noise = unit_noise(range(16), (1, 2, 2), torch.float64)
    end = converged(model, noise, table.sigmas[[0, -1]], 1e-6, 1e-6)[1:]
    return Parameters.of(table, structure(config, "ve").learn), Chunk(model, noise, end)


def columns(parameters: Parameters, chunk: Chunk, replay: bool) -> list[Tensor]:
    """Residuals of every nudged vector, with and without replayed calls."""
    recorder = RecordingDenoiser(chunk.denoiser)
    end_residual()(parameters.coefficients(parameters.start), recorder, chunk)
    out = []
    for k, first in enumerate(first_reached(parameters, parameters.start, EPS)):
        vector = parameters.start.clone()
        vector[k] += EPS
        denoiser = ReplayingDenoiser(chunk.denoiser, recorder.calls, first) if replay else chunk.denoiser
        out.append(end_residual()(parameters.coefficients(vector), denoiser, chunk))
    return out


def test_replayed_calls_change_no_bit_and_save_network_calls() -> None:
    for changes in ({"calls": 5}, {"calls": 4, "step_calls": 1, "memory": 2}, {"calls": 5, "family": "s4s"}):
        parameters, chunk = problem(**changes)
        with_replay, without = columns(parameters, chunk, True), columns(parameters, chunk, False)
        assert all(torch.equal(a, b) for a, b in zip(with_replay, without, strict=True))
        reached = first_reached(parameters, parameters.start, EPS)
        assert max(reached) == parameters.base.depth  # the last update's weights need no call at all
        assert min(reached) < parameters.base.depth - 1


def test_normal_equations_are_those_of_autograd() -> None:
    parameters, chunk = problem(calls=3)

    def residual(vector: Tensor) -> Tensor:
        return end_residual()(parameters.coefficients(vector), chunk.denoiser, chunk)

    found = normal_equations(parameters, parameters.start, [chunk], end_residual(), EPS)
    jacobian = torch.autograd.functional.jacobian(residual, parameters.start)
    assert isinstance(jacobian, Tensor)
    base = residual(parameters.start)
    assert torch.allclose(found.matrix, jacobian.T @ jacobian / len(base), rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.gradient, jacobian.T @ base / len(base), rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.loss, base.square().mean(), rtol=1e-12)


def test_one_step_solves_a_linear_problem() -> None:
    """Update weights of the last step enter linearly: one undamped step reaches the least-squares optimum."""
    parameters, chunk = problem(calls=2, learn=("weights", "anchor"))
    residual = end_residual()
    normal = normal_equations(parameters, parameters.start, [chunk], residual, EPS)
    vector = parameters.start + damped_step(normal, 0.0)
    optimum = normal.loss - normal.gradient @ torch.linalg.solve(normal.matrix, normal.gradient)
    after = residual(parameters.coefficients(vector), chunk.denoiser, chunk).square().mean()
    assert float(optimum) < 0.5 * float(normal.loss)
    # The floor under the diagonal and the rounding of differences leave a ten-thousandth.
    assert abs(float(after / optimum) - 1) < 3e-4


def test_useless_directions_stay_still() -> None:
    normal = gauss_newton.Normal(
        torch.diag(torch.tensor([2.0, 0.0]).double()), torch.tensor([1.0, 0.0]).double(), torch.tensor(1.0)
    )
    step = damped_step(normal, 1e-2)
    assert abs(float(step[0]) + 1 / 2.02) < 1e-6 and float(step[1]) == 0.0


def test_per_step_gradients_stay_within_their_step() -> None:
    """The published objective: the loss of step n moves the numbers of step n alone."""
    model, config = toy_mixture(), toy_config(calls=5, family="epd")
    table = initial_table(config, model)
    parameters = Parameters.of(table, ("nodes",))
    noise = unit_noise(range(4), (1, 2, 2), torch.float64)
    end = converged(model, noise, table.sigmas[[0, -1]], 1e-6, 1e-6)[-1]
    vector = parameters.start.requires_grad_()
    c = parameters.coefficients(vector)
    # A teacher that agrees with the student everywhere but at the end.
    own = torch.stack([s.detach() for s in trajectory(parallel(c), model, noise, c.sigmas)][1:])
    own[-1] = end
    (gradient,) = torch.autograd.grad(steps_loss(c, Chunk(model, noise, own)), vector)
    per_step = gradient.reshape(table.num_steps, -1).abs().sum(1)
    assert (per_step[:-1] == 0).all() and float(per_step[-1]) > 0


def test_feature_distance_is_added_with_its_weight() -> None:
    parameters, chunk = problem(calls=3)
    features = torch.nn.Flatten()
    c = parameters.coefficients(parameters.start)
    plain = end_residual()(c, chunk.denoiser, chunk)
    both = end_residual(features, 3.0)(c, chunk.denoiser, chunk)
    assert torch.allclose(both.square().sum(), 4 * plain.square().sum())  # the features are the picture itself


@dataclass(frozen=True)
class TwoParts:
    """What the optimiser sees of a trainer: its own batch, and the samples that a step is held against."""

    parameters_: Parameters
    config: ResolvedConfig
    workers: Workers = Workers()
    residual: Residual = end_residual()
    iterations: int = 10

    def parameters(self, state: TrainerState) -> Parameters:
        return self.parameters_


@pytest.mark.parametrize("exploring", [False, True])
def test_a_step_that_fits_its_own_batch_alone_is_refused_but_while_exploring(exploring: bool) -> None:
    """The batch's teacher is the table at other numbers; the teacher of all other samples is the table as it is."""
    parameters, chunk = problem(calls=3, learn=("weights", "anchor"))
    vector = parameters.start
    target = vector + 0.05

    def chunk_of(numbers: Tensor) -> Chunk:
        c = parameters.coefficients(numbers)
        return Chunk(chunk.denoiser, chunk.noise, solve(parallel(c), chunk.denoiser, chunk.noise, c.sigmas)[None])

    own, others = chunk_of(target), chunk_of(vector)
    trainer = TwoParts(parameters, toy_config(points=2, optimizer="gauss-newton").resolved(4))
    none = torch.zeros(2, len(vector), dtype=torch.float64)
    state = TrainerState(0, 0, 0, vector, vector, math.inf, 0, 0, gauss_newton.DAMPING, none)
    moved = gauss_newton.update(trainer, state, 1, lambda i: [own if i == 0 else others], exploring)
    assert moved.accepted == exploring
    if exploring:
        assert float((moved.vector - target).norm()) < 0.3 * float((vector - target).norm())
    else:
        assert torch.equal(moved.vector, vector) and moved.damping > state.damping
    agreed = gauss_newton.update(trainer, state, 1, lambda i: [own], exploring=False)
    assert agreed.accepted and agreed.damping == state.damping / 5
    assert float((agreed.vector - target).norm()) < 0.3 * float((vector - target).norm())
