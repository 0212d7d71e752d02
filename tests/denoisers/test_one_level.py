"""A call whose rows are all at one noise level."""

from __future__ import annotations

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
