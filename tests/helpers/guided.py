"""Models with guidance, and tables that scale its guidance."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

import epd
from epd import GaussianMixture
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.preconditioning import edm
from epd.denoisers.protocol import Path

LABELS = [0, 1, 2, 1, 0]


class ByClass(GaussianMixture):
    """A sample's class is its seed's."""

    def for_seeds(self, seeds: object) -> GaussianMixture:
        return self.bind([seed % 3 for seed in seeds], self.guidance)  # type: ignore[attr-defined]


def classes(path: Path = "ve", guidance: float = 3.0) -> ByClass:
    """Three classes of two modes each; what `for_seeds` binds has this guidance."""
    means = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    high = 40.0 if path == "ve" else 1.0
    model = ByClass(means, 0.4, path=path, labels=labels, sigma_min=0.05, sigma_max=high, name="classes")
    model.guidance = guidance
    return model


def _sines(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    return torch.sin(x + timestep.reshape(-1, 1, 1)) * rows["class_labels"].reshape(-1, 1, 1).to(x.dtype)


def guided_network() -> NetworkDenoiser:
    """A network with five conditions; what `for_seeds` binds has guidance 3."""
    null = {"class_labels": torch.tensor([0])}
    return NetworkDenoiser(
        _sines, edm(), (2, 3), 0.02, 80.0, dtype=torch.float64, null=null, guidance=3.0,
        seed_rows=lambda seeds: torch.tensor([1 + seed % 5 for seed in seeds]),
    )  # fmt: skip


def scaled(table: epd.Table, seed: int = 0) -> epd.Table:
    """The table with a factor of its own for every evaluation."""
    rng = np.random.default_rng(seed)
    anchor = rng.uniform(0.5, 1.8, table.num_steps)
    anchor[0] = 1.0 if table.moves_first_call else anchor[0]
    return dataclasses.replace(table, guidance_scale=rng.uniform(0.5, 1.8, table.nodes.shape), anchor_guidance=anchor)
