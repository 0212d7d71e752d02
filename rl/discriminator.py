"""Tells accelerated pictures from those of the plain solver: learned beside a policy, so that no reward is hacked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .reward import RewardError

Features = Callable[[Tensor], Tensor]  # pictures (B, 3, H, W) in [0, 1] -> (B, F)
WIDTH = 64


class Discriminator(nn.Module):
    """The probability that a picture is the plain solver's, by a small network on its features; 1/2 at the start.

    Features are moved and scaled to mean 0 and variance 1 within each picture. Reference: arXiv 2509.22323, with an
    adapter behind a frozen tower in place of one inside of it.

    Args:
        size: F, of the features.
        seed: of the initial weights.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.last = nn.Linear(size, WIDTH), nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B,)."""
        return self.last(F.silu(self.first(F.layer_norm(features, features.shape[1:]))))[:, 0]

    def real(self, features: Tensor) -> Tensor:
        """Probabilities (B,) float64, without gradient."""
        with torch.no_grad():
            return self(features).double().sigmoid()

    def loss(self, plain: Tensor, accelerated: Tensor) -> Tensor:
        """Cross entropy, of both kinds alike."""
        logits = self(torch.cat([plain, accelerated]))
        told = torch.cat([torch.ones(len(plain)), torch.zeros(len(accelerated))])
        weight = torch.cat([torch.full((len(x),), 0.5 / len(x)) for x in (plain, accelerated)])
        return (weight * F.binary_cross_entropy_with_logits(logits, told, reduction="none")).sum()


def features_of(features: Features, images: Tensor) -> Tensor:
    """(B, F) float32 on the CPU, without gradient.

    Raises:
        RewardError: for anything else than a finite row for each picture.
    """
    with torch.no_grad():
        found = features(images.clamp(0, 1).expand(-1, 3, -1, -1))
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images) or not found.shape[1]:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise RewardError(f"the features of {len(images)} pictures are {shape}: return ({len(images)}, F)")
    if not bool(found.isfinite().all()):
        raise RewardError("the features hold numbers that are not finite: return finite ones for every picture")
    return found.detach().cpu().float()
