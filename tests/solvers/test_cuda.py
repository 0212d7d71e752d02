"""Answers and graphs on a CUDA device, against the same on the processor and against `solve`."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from helpers.recording import elementwise, normal
from helpers.tables import FAMILIES, SIGMAS
from torch import Tensor

import epd
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.preconditioning import edm
from epd.denoisers.rows import limit_rows
from epd.solvers.answers import batched, serial, streams
from epd.solvers.auto import auto

pytestmark = pytest.mark.cuda
NOISE = normal(5, 2, 3).float()


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_agree(name: str) -> None:
    rule, noise = FAMILIES[name].rule("cuda"), NOISE.cuda()
    expected = epd.solve(FAMILIES[name].rule(), elementwise, NOISE, SIGMAS)
    for answer in (batched, serial, streams, auto()):
        with torch.no_grad():
            found = epd.solve(rule, elementwise, noise, SIGMAS, answer)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("answer", [batched, serial, streams])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_replays_are_solve(name: str, whole: bool, answer: Any, caplog: pytest.LogCaptureFixture) -> None:  # noqa: ANN401
    rule = FAMILIES[name].rule("cuda")
    run = epd.capture(rule, elementwise, NOISE.shape, torch.float32, SIGMAS, whole, answer=answer)
    with torch.no_grad():
        for noise in (NOISE.cuda(), NOISE.cuda().flip(0), NOISE.cuda()[:3], NOISE.cuda()):
            expected = epd.solve(rule, elementwise, noise, SIGMAS, answer)
            torch.testing.assert_close(run(noise), expected, rtol=1e-6, atol=1e-6)
    assert run.replays.kept == 2 and not caplog.records


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("whole", [False, True])
def test_conditions_and_eviction(whole: bool, guidance: float) -> None:
    """Graphs of several shapes in one pool of memory, one of which is thrown away and recorded again."""
    layer = torch.nn.Conv1d(2, 2, 1).cuda().requires_grad_(False)

    def network(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        return torch.sin(layer(x) + timestep[:, None, None]) * rows["class_labels"][:, None, None]

    null = {"class_labels": torch.tensor([0.5], device="cuda")}
    model = NetworkDenoiser(network, edm(), (2, 3), 0.1, 40.0, null=null, device="cuda")
    rule, labels = FAMILIES["mixed calls"].rule("cuda"), {"class_labels": torch.ones(5, device="cuda")}
    run = epd.capture(
        rule, lambda c: model.bind(c, guidance), NOISE.shape, torch.float32, SIGMAS, whole, labels, most=2
    )
    with torch.no_grad():
        for rows in (5, 3, 2, 5, 3):
            own = {"class_labels": torch.rand(rows, device="cuda")}
            noise = NOISE[:rows].cuda()
            expected = epd.solve(rule, model.bind(own, guidance), noise, SIGMAS)
            torch.testing.assert_close(run(noise, own), expected, rtol=1e-6, atol=1e-6)
            assert run.replays.kept <= 2


def test_what_waits_for_the_device_is_named_and_runs(caplog: pytest.LogCaptureFixture) -> None:
    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return elementwise(x, sigma) * (1 if x.sum().item() > 0 else -1)

    run = epd.capture(epd.rules.heun(), denoiser, NOISE.shape, torch.float32, SIGMAS)
    with torch.no_grad():
        expected = epd.solve(epd.rules.heun(), denoiser, NOISE.cuda(), SIGMAS)
        torch.testing.assert_close(run(NOISE.cuda()), expected)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "waits for the device" in record.getMessage()


def test_a_memory_limit_holds() -> None:
    inside, outside = torch.nn.Conv2d(2, 64, 3, padding=1), torch.nn.Conv2d(64, 2, 3, padding=1)
    layer = torch.nn.Sequential(inside, torch.nn.SiLU(), outside)
    layer.cuda().requires_grad_(False)
    model = NetworkDenoiser(lambda x, t, rows: layer(x), edm(), (2, 32, 32), 0.1, 40.0, device="cuda")
    limit, points = 8 * 2**20, torch.randn(4, 8, 2, 32, 32, device="cuda")
    answer = batched(limit_rows(model, max_memory=limit).for_seeds(range(8)))
    ask = epd.Ask(points, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, device="cuda"))
    with torch.no_grad():
        answer(ask)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        answer(ask)
        assert torch.cuda.max_memory_allocated() - before <= limit
