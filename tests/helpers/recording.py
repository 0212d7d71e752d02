"""A denoiser without rounding surprises, and one that remembers its calls, for the tests of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

import epd


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def elementwise(x: Tensor, sigma: Tensor) -> Tensor:
    """A nonlinear denoiser of exactly rounded operations only, so that equal inputs give equal bits in any batch."""
    level = sigma.to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    return x / (1 + level * level) + x / (2 + x * x)


@dataclass
class Recorder:
    """A denoiser that keeps what it was given."""

    denoiser: epd.Denoiser = elementwise
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append((x.detach().clone(), sigma.detach().clone()))
        return self.denoiser(x, sigma)
