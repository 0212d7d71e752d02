"""A memory limit: what a fan's answer takes is predicted from one measured call, and never exceeded."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from helpers.recording import elementwise, normal
from torch import Tensor

import epd
from epd.denoisers.live_memory import LiveMemory
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.preconditioning import edm
from epd.denoisers.rows import limit_rows
from epd.solvers.answers import batched

MB = 2**20


@dataclass
class Wide:
    """A network whose inner tensors are 32 times as large as its state, and whose conditions are twice as large."""

    calls: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        self.calls.append(len(x))
        inside = torch.cat([torch.sin((i + 1) * x) for i in range(32)], 1)
        told = rows["embeds"].mean((1, 2, 3)) + timestep
        return inside.mean(1, keepdim=True) * told.reshape(-1, 1, 1, 1)


def model_of(network: Wide, guidance: float) -> NetworkDenoiser:
    embeds = normal(9, 2, 16, 16).float()
    return NetworkDenoiser(
        network, edm(), (1, 16, 16), 0.02, 80.0, null={"embeds": torch.ones(1, 2, 16, 16)}, guidance=guidance,
        seed_rows=lambda seeds: {"embeds": embeds[list(seeds)]},
    )  # fmt: skip


@pytest.mark.parametrize("limit", [3 * MB // 4, 2 * MB, 8 * MB])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fan_never_exceeds_its_limit(limit: int, guidance: float, dtype: torch.dtype) -> None:
    network, seeds = Wide(), range(5)
    whole, points = model_of(network, guidance), normal(3, 5, 1, 16, 16).to(dtype)
    ask = epd.Ask(points, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    model = limit_rows(whole, max_memory=limit)
    with torch.no_grad():
        expected = batched(whole.for_seeds(seeds))(ask)
        model.limit(points.flatten(0, 1))  # the measurement itself is a call of one row
        network.calls.clear()
        with LiveMemory() as memory:
            found = batched(model.for_seeds(seeds))(ask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert memory.peak <= limit
    rows = max(network.calls) // (1 if guidance == 1.0 else 2)
    assert rows == 15 or memory.peak > limit / 4, "it is made use of"
    assert rows == 15 or limit < 8 * MB


def test_a_limit_that_holds_no_row_says_what_is_needed() -> None:
    model = limit_rows(model_of(Wide(), 1.0), max_memory=100_000)
    x = normal(15, 1, 16, 16).float()
    with torch.no_grad():
        with pytest.raises(ValueError, match="max_memory = 100000 bytes are too few for 15 rows") as told:
            model.for_seeds(range(5))(x, torch.tensor(1.0))
        enough = int(str(told.value).split("give ")[1].split()[0])
        with LiveMemory() as memory:
            limit_rows(model, max_memory=enough).for_seeds(range(5))(x, torch.tensor(1.0))
    assert memory.peak <= enough
    with pytest.raises(ValueError, match="max_memory = 0 must be at least 1 byte"):
        limit_rows(model, max_memory=0)


def test_limits_of_rows_and_bytes_hold_together() -> None:
    network = Wide()
    model = limit_rows(limit_rows(model_of(network, 1.0), 2), max_memory=8 * MB)
    with torch.no_grad():
        model.for_seeds(range(4))(normal(8, 1, 16, 16).float(), torch.tensor(1.0))
        model(elementwise(normal(5, 1, 16, 16).float(), torch.tensor(1.0)), torch.tensor(1.0))
    assert max(network.calls) == 2 and limit_rows(model).max_memory == 8 * MB
    assert limit_rows(model, 3).max_memory == 8 * MB
