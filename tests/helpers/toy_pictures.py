"""Small pictures and a small network that sees them, for tests of evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from epd import GaussianMixture, Table

WIDTH = 5


def picture_mixture(mean: float = 0.4) -> GaussianMixture:
    """Three modes of 3 x 6 x 6, most of whose pixels lie in [0, 1] when they are shown."""
    means = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    return GaussianMixture(means + mean - 0.4, 0.2, sigma_min=0.02, sigma_max=20.0, name="pictures")


def rough_table(steps: int = 2) -> Table:
    """Not learned at all: 2 steps of 2 points, 4 sequential calls, 6 evaluations."""
    sigmas = np.geomspace(20.0, 0.02, steps + 1)
    return Table(sigmas, [[0.3, 0.7]] * steps, [[0.5, 0.5]] * steps)


class TinyFeatures(nn.Module):
    """Random, frozen, not linear."""

    num_features = WIDTH  # torchmetrics asks for it

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(WIDTH, 3, 3, 3, generator=generator))

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.conv2d(pictures, self.weight).tanh().mean((2, 3))


def saved_pictures(folder: Path, count: int = 30, size: tuple[int, int] = (6, 6), seed: int = 1) -> Tensor:
    """Noise as PNG files; the pictures (count, 3, *size) of 8-bit values in [0, 1]."""
    pixels = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)).mul(255).round().to(torch.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return pixels.float() / 255
