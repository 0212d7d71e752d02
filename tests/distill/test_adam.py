"""Adam's update on gradients from a list: outliers, scales and zeros."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd.distill import adam
from epd.distill.objective import end_residual
from epd.distill.parameters import Parameters
from epd.distill.plan import make_plan
from epd.distill.state import TrainerState
from epd.runs.processes import Workers


class Listed(Workers):
    """Gives the optimiser gradients from a list instead of a batch's."""

    def __init__(self, gradients: list[Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "gradients", iter(gradients))

    def mean(self, parts: int, size: int, work: Callable[[int], Tensor]) -> Tensor:
        return torch.cat([next(self.gradients), torch.zeros(1, dtype=torch.float64)])  # type: ignore[attr-defined]


def steps_of_adam(gradients: list[Tensor], clip: float) -> list[TrainerState]:
    """The states of Adam before and after updates with these gradients."""
    config = toy_config(family="amed", calls=4, schedule="polynomial", optimizer="adam", clip=clip)
    plan = make_plan(toy_mixture(), config)

    class Run:
        workers: Workers = Listed(gradients)
        config, residual, iterations = plan.config, staticmethod(end_residual()), 100

        def parameters(self, state: TrainerState) -> Parameters:
            return Parameters.of(plan.tables[0], plan.learn)

    none = torch.zeros_like(gradients[0])
    states = [TrainerState(0, 0, 0, none, none, math.inf, 0, 0, 0.0, torch.stack([none, none]))]
    for _ in gradients:
        moved = adam.update(Run(), states[-1], 1, lambda i: pytest.fail("not asked"), exploring=False)
        iteration = states[-1].iteration + 1
        states.append(dataclasses.replace(states[-1], iteration=iteration, vector=moved.vector, moments=moved.moments))
    return states


def test_an_outlier_among_gradients_is_clipped_to_the_usual_scale() -> None:
    """Usual norm 1, then 50 times as much: the second moment hears of 1.4 squared, in the outlier's direction."""
    usual, outlier = torch.tensor([0.6, 0.8], dtype=torch.float64), torch.tensor([30.0, -40.0], dtype=torch.float64)
    before, after = steps_of_adam([usual] * 20 + [outlier], clip=1.4)[-2:]
    heard = (after.moments[1] - 0.99 * before.moments[1]) / 0.01
    assert torch.allclose(heard, (1.4 * outlier / 50) ** 2, rtol=1e-12)
    free = steps_of_adam([usual] * 20 + [outlier / 50 * 1.39], clip=1.4)[-1]
    assert torch.allclose((free.moments[1] - 0.99 * before.moments[1]) / 0.01, (1.39 * outlier / 50) ** 2, rtol=1e-12)


def test_adam_does_not_depend_on_the_scale_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(2, generator=generator, dtype=torch.float64).exp() for _ in range(30)]
    small, large = (steps_of_adam([k * g for g in gradients], clip=1.4)[-1].vector for k in (1.0, 1e4))
    assert torch.allclose(small, large, rtol=1e-6)


def test_gradients_of_zero_do_not_stop_adam_for_good() -> None:
    states = steps_of_adam([torch.zeros(2, dtype=torch.float64)] * 3 + [torch.ones(2, dtype=torch.float64)] * 2, 1.4)
    assert torch.equal(states[3].vector, states[0].vector) and bool((states[-1].vector < states[3].vector).all())
