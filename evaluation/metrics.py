"""Distances between samples, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Features = Callable[[Tensor], Tensor]
ROWS = 512  # samples that are looked at together
DRAWN = 2**20  # numbers that are resampled together


def rmse(x: Tensor, end: Tensor) -> float:
    """Root mean square difference over all elements of two equally shaped sets of samples."""
    if x.shape != end.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, end has {tuple(end.shape)}: compare the same samples")
    total = sum(float((a.double() - b.double()).square().sum()) for a, b in _parts(x, end))
    return math.sqrt(total / x.numel())


def sample_errors(x: Tensor, end: Tensor) -> Tensor:
    """RMSE of every sample, over its elements: (N,) float64, of two equally shaped sets (N, *S)."""
    if x.shape != end.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, end has {tuple(end.shape)}: compare the same samples")
    return torch.cat([(a.double() - b.double()).flatten(1).square().mean(1).sqrt() for a, b in _parts(x, end)]).cpu()


def bootstrap_interval(
    errors: Tensor, share: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Where the root mean square of errors (N,) lies in `share` of the resamples (N drawn with replacement): low, high.

    Most of an RMSE can come from a few samples that end in another mode, so that other samples give another number;
    the interval says how much another. Percentile bootstrap, doi 10.1214/aos/1176344552.
    """
    squares = errors.double().square().cpu()
    count, generator = len(squares), torch.Generator().manual_seed(seed)
    block = max(1, DRAWN // count)
    sizes = [min(block, resamples - done) for done in range(0, resamples, block)]
    means = [squares[torch.randint(count, (size, count), generator=generator)].mean(1) for size in sizes]
    bounds = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
    low, high = torch.cat(means).quantile(bounds).sqrt().tolist()
    return low, high


def _parts(x: Tensor, end: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few samples of each at a time, so that no copy of all of them is made."""
    return zip(x.split(ROWS), end.split(ROWS), strict=True)


def extract(features: Features, samples: Tensor, device: str = "cpu", batch: int = ROWS) -> Tensor:
    """Features (N, F) float64, in main memory, of samples (N, *S), which `features` sees as float32, batch by batch.

    Args:
        device: where `features` wants its samples.
    """
    parts = [features(part.to(device, torch.float32)).cpu() for part in samples.split(batch)]
    return torch.cat(parts).double().flatten(1)


@dataclass(frozen=True, eq=False)
class Moments:
    """What the Frechet distance knows of a set of features: mean (F,) and covariance (F, F), float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of features (N, F), N >= 2: two passes over blocks of rows, in their order."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (N, F) with N >= 2, got shape {tuple(features.shape)}")
    count, width = features.shape
    mean = torch.zeros(width, dtype=torch.float64)
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for rows in features.split(ROWS):
        mean += rows.double().sum(0) / count
    for rows in features.split(ROWS):
        centred = rows.double() - mean
        covariance += centred.T @ centred / (count - 1)
    return Moments(mean, (covariance + covariance.T) / 2)  # products of blocks may round by their half


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""`frechet` between two feature sets (N, F), (M, F)."""
    return frechet(moments(a), moments(b))


def frechet(a: Moments, b: Moments) -> float:
    r"""|m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2 of two sets of features of one extractor.

    Roots of symmetric matrices by eigenvalues: nothing complex, and singular covariances (N < F, dead features) are as
    good as any. Reference: arXiv 1706.08500.
    """
    if a.mean.shape != b.mean.shape:
        widths = f"{len(a.mean)} and {len(b.mean)}"
        raise ValueError(f"features of width {widths} cannot be compared: use one extractor")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(float(distance), 0.0)
