"""A call whose rows are all at one noise level."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from epd.denoisers import preconditioning
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.noise import unit_noise

SHAPE = (2, 3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_level_for_all_rows_is_one_number_to_the_coefficients(guidance: float) -> None:
    levels: list[tuple[int, ...]] = []
    calls: list[int] = []

    def seen(sigma: Tensor) -> preconditioning.NetworkCoefficients:
        levels.append(tuple(sigma.shape))
        return preconditioning.edm()(sigma)

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        calls.append(len(timestep))
        return torch.tanh(x) + rows["class_labels"].to(x)[:, None, None] + timestep[:, None, None]

    null = {"class_labels": torch.tensor([-1])}
    denoiser = NetworkDenoiser(call, seen, SHAPE, 0.01, 20.0, dtype=torch.float64, null=null)
    bound, x = denoiser.bind(torch.tensor([1, 2, 3]), guidance), unit_noise(range(3), SHAPE, torch.float64)
    level = torch.tensor(1.7, dtype=torch.float64)
    one, several = bound(x, level.expand(3)), bound(x, level.repeat(3))
    rows = 3 if guidance == 1 else 6
    assert levels == [(), (rows,)] and calls == [rows, rows]
    torch.testing.assert_close(one, several, rtol=1e-14, atol=1e-14)


def test_levels_that_come_again_are_not_computed_again_and_change_no_bit() -> None:
    asked: list[float] = []

    def seen(sigma: Tensor) -> preconditioning.NetworkCoefficients:
        asked.append(float(sigma.detach()))
        return preconditioning.edm()(sigma)

    call = lambda x, timestep, rows: torch.tanh(x) * timestep[:, None, None]  # noqa: E731
    model = NetworkDenoiser(call, seen, SHAPE, 0.01, 20.0, null={"class_labels": torch.tensor([0])})
    x = unit_noise(range(3), SHAPE)
    levels = [torch.tensor(level, dtype=torch.float64) for level in (1.7, 0.3)]
    fresh = [model(x, level) for level in levels]  # where gradients are recorded, nothing is kept
    assert asked == [1.7, 0.3]
    with torch.inference_mode():
        kept = [model(x, level) for level in (*levels, *levels)]
    with torch.no_grad():
        kept += [model.bind(torch.tensor([1, 2, 3]))(x, level) for level in levels]
    assert asked == [1.7, 0.3] * 2
    assert all(torch.equal(kept[i], fresh[i % 2]) for i in range(6))
    sigma = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x, sigma).sum(), sigma)
    assert float(slope) != 0
    with torch.no_grad():
        other = replace(model, precondition=preconditioning.edm(1.0))
        assert not torch.equal(other(x, levels[0]), fresh[0]) and torch.equal(model(x, levels[0]), fresh[0])
