"""Networks of several sizes with random weights, and the tables that they are solved with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn

from ...denoisers.diffusers_networks import dit
from ...denoisers.digits import classes_of, digits_transformer
from ...denoisers.networks import NetworkDenoiser
from ...denoisers.noise import unit_noise
from ...denoisers.timesteps import linear_beta
from ...solvers.table import Table
from .timing import Settings


@dataclass(frozen=True)
class Subject:
    """A network and the model around it.

    Args:
        rows: one sample's conditions, which all have; none: samples have classes.
    """

    name: str
    network: nn.Module
    model: NetworkDenoiser
    rows: Mapping[str, Tensor] | None = None

    def bound(self, batch: int) -> NetworkDenoiser:
        """For the samples of seeds 0, 1, ..."""
        if self.rows is None:
            return self.model.bind(classes_of(range(batch)))
        return self.model.bind({name: row.expand(batch, *row.shape[1:]) for name, row in self.rows.items()})

    def noise(self, batch: int) -> Tensor:
        return unit_noise(range(batch), self.model.shape, self.model.dtype, self.model.device)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


def transformer(heads: int, layers: int, size: int, channels: int = 4, patch: int = 2) -> DiTTransformer2DModel:
    """A DiT (arXiv 2212.09748) of width 64 `heads` on `size` x `size` states; random weights, equal every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=64, in_channels=channels, out_channels=channels,
            num_layers=layers, sample_size=size, patch_size=patch, num_embeds_ada_norm=10,
        )  # fmt: skip
    return made.eval().requires_grad_(False)


SIZES: dict[str, Callable[[], DiTTransformer2DModel]] = {
    "tiny": lambda: transformer(1, 1, 8),
    "digits": digits_transformer,
    "dit-7M": lambda: transformer(4, 6, 16),
    "dit-33M": lambda: transformer(6, 12, 32),
    "dit-130M": lambda: transformer(12, 12, 32),
    "dit-675M": lambda: transformer(18, 28, 32),
}


def subject(name: str, settings: Settings, dtype: torch.dtype = torch.float32) -> Subject:
    """A network by its name in SIZES."""
    return around(name, SIZES[name](), settings.device, dtype)


def around(
    name: str, network: Any, device: torch.device, dtype: torch.dtype = torch.float32  # noqa: ANN401
) -> Subject:
    """A network of this kind, on the device."""
    network.to(device)
    if network.dtype != dtype:
        network.to(dtype)
    return Subject(name, network, dit(network, linear_beta(), "v_prediction", name))


def plain_table(steps: int, points: int, sigma_max: float = 40.0, sigma_min: float = 0.02) -> Table:
    """An unlearned table of two-call steps with `points` points in the second call; what it costs is what counts."""
    sigmas = torch.logspace(0, 1, steps + 1, dtype=torch.float64).sub(1).div(9)
    levels = (sigma_max ** (1 / 7) + sigmas * (sigma_min ** (1 / 7) - sigma_max ** (1 / 7))) ** 7
    nodes = [[(j + 1) / (points + 1) for j in range(points)]] * steps
    return Table(levels.tolist(), nodes, [[1 / points] * points] * steps)
