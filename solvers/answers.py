"""Who answers an Ask, and where: one batched network call, or several."""

from __future__ import annotations

import torch
from torch import Tensor

from ..denoisers.protocol import Denoiser
from .walk import Ask


def slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """dx/dsigma = (x - D(x, sigma)) / sigma, for x (B, *S), on every path."""
    return slopes(denoiser, Ask(x[None], torch.as_tensor(sigma, dtype=torch.float64)[None]))[0]


def slopes(denoiser: Denoiser, ask: Ask) -> Tensor:
    """Answers an Ask with one call of K x B rows, sample-major (row = b K + k): slopes (K, B, *S).

    Raises:
        ValueError: when the denoiser returns another shape than it was given.
    """
    k, b = ask.points.shape[:2]
    rows = ask.points.transpose(0, 1).flatten(0, 1)
    told = ask.told
    denoised = denoiser(rows, told.expand(b, k).flatten() if told.ndim == 1 else told.T.flatten())
    if denoised.shape != rows.shape:
        raise ValueError(
            f"the denoiser returned shape {tuple(denoised.shape)} for a state of shape {tuple(rows.shape)}: "
            "it must return E[x0 | x] of the same shape (drop learned-variance channels in its adapter)"
        )
    away = ask.points - denoised.reshape(b, k, *denoised.shape[1:]).transpose(0, 1)
    return away / ask.sigma.to(away).reshape(k, -1, *[1] * (away.ndim - 2))
