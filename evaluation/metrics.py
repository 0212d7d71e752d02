"""Distances between samples, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Features = Callable[[Tensor], Tensor]


def rmse(x: Tensor, end: Tensor) -> float:
    """Root mean square difference over all elements of two equally shaped sets of samples."""
    if x.shape != end.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, end has {tuple(end.shape)}: compare the same samples")
    return float((x.double() - end.double()).square().mean().sqrt())


def extract(features: Features, samples: Tensor, batch: int = 512) -> Tensor:
    """Features (N, F) float64 of samples (N, *S), which are given to `features` as float32, batch by batch."""
    parts = [features(samples[i : i + batch].float()) for i in range(0, len(samples), batch)]
    return torch.cat(parts).double().flatten(1)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (N, F) with N >= 2, got shape {tuple(features.shape)}")
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""|m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2 between two feature sets (N, F), (M, F).

    Roots of symmetric matrices by eigenvalues: nothing complex, and singular covariances (N < F, dead features) are as
    good as any. Reference: arXiv 1706.08500.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"features of width {a.shape[-1]} and {b.shape[-1]} cannot be compared: use one extractor")
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a.double()), _moments(b.double())
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(float(distance), 0.0)
