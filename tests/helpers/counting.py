"""Mixtures that count: rows of each call, or all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from epd import GaussianMixture


class Counting(GaussianMixture):
    """Args: calls: rows of each network call; plain: an arithmetic that keeps nothing, in place of the mixture's."""

    calls: list[int]
    plain = False

    def for_seeds(self, seeds: Sequence[int]) -> Counting:
        return self

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append(len(x))
        return x / 2 if self.plain else super().__call__(x, sigma)


class Counted(GaussianMixture):
    """Counts the rows that it evaluates, whatever its seeds."""

    rows = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows += len(x)
        return super().__call__(x, sigma)

    def for_seeds(self, seeds: Sequence[int]) -> Counted:
        return self


def counting(shape: tuple[int, ...] = (1, 2, 2), plain: bool = False) -> Counting:
    """Five modes of random means."""
    means = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Counting(means, 0.5, sigma_min=0.02, sigma_max=20.0, name="toy")
    model.calls, model.plain = [], plain
    return model
