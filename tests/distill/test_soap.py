"""SOAP: Adam in the eigenbasis of the gradient's second moment."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd.distill import adam, soap
from epd.distill.plan import make_plan
from epd.distill.state import TrainerState

SIZE, UPDATES = 6, 40


def minimised(optimizer: Any, hessian: Tensor, start: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:  # noqa: ANN401
    """The points that an optimiser passes on v^T H v / 2, with the same noise in H v every time."""
    noise = torch.randn(UPDATES, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eigen, basis = torch.linalg.eigh(hessian)

    def gradient(problem: object, state: TrainerState, *rest: object) -> tuple[Tensor, float]:
        pulled = hessian @ state.vector + basis @ (0.1 * eigen * noise[state.iteration])
        return torch.cat([pulled, state.vector[:1] * 0]), 1.0

    monkeypatch.setattr(optimizer, "scaled_gradient", gradient)
    problem: Any = SimpleNamespace(config=toy_config(optimizer="soap", points=2).resolved(4), iterations=UPDATES)
    state = TrainerState(0, 0, 0, start, start, math.inf, 0, 0, 0.0, optimizer.moments(SIZE), 1.0)
    points = []
    for n in range(UPDATES):
        done = optimizer.update(problem, state, 1, lambda i: [], False)
        state = TrainerState(n + 1, 0, 0, done.vector, start, math.inf, 0, 0, 0.0, done.moments, 1.0)
        points.append(done.vector)
    return points


def problem_of(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues from 1 to 1000, a rotation, a start."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
    start = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    return torch.logspace(0, 3, SIZE, dtype=torch.float64).diag(), rotation, start


def test_a_rotated_problem_is_solved_by_the_rotated_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which Adam's are not: it depends on the coordinates. Nearly equal gradients at first amplify rounding."""
    monkeypatch.setattr(soap, "EVERY", 1)  # an older basis is no multiple of the gradient's
    hessian, rotation, start = problem_of()
    rotated = rotation @ hessian @ rotation.T
    distances = []
    for optimizer in (soap, adam):
        plain = minimised(optimizer, hessian, start, monkeypatch)
        turned = minimised(optimizer, rotated, rotation @ start, monkeypatch)
        distances.append(max(float((rotation @ a - b).norm()) for a, b in zip(plain, turned, strict=True)))
    assert distances[0] < 0.02 and distances[1] > 0.2, distances


def test_with_one_direction_it_is_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    only = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    only[2, 2] = 5.0
    start = torch.ones(SIZE, dtype=torch.float64)
    for a, b in zip(*(minimised(o, only, start, monkeypatch) for o in (soap, adam)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_tables_of_too_many_numbers_are_adams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soap, "MOST", 10)
    assert make_plan(toy_mixture(), toy_config(optimizer="auto")).config.optimizer == "adam"
    with pytest.raises(ValueError, match="optimizer = 'soap' takes at most 10 numbers, here are [0-9]+: use 'adam'"):
        make_plan(toy_mixture(), toy_config(optimizer="soap"))
    assert make_plan(toy_mixture(), toy_config(optimizer="auto", family="amed", calls=2)).config.optimizer == "soap"
