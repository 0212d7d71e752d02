"""How two sets of features differ beside their moments: kernel distance, precision and recall; float64, on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEIGHBOURS = 3
BLOCK = 1024  # rows whose distances to all others are held together


def some_rows(features: Tensor, most: int, seed: int = 0) -> Tensor:
    """At most so many rows, in their order: the same ones for one seed, drawn at random as folders are sorted by class.
    """
    if len(features) <= most:
        return features
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:most]
    return features[chosen.sort().values]


def kernel_distance(a: Tensor, b: Tensor, subsets: int, size: int, seed: int = 0) -> tuple[float, float]:
    r"""KID: mean and standard deviation over pairs of subsets of the unbiased squared maximum mean discrepancy.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j) with
    k(x, y) = (x . y / F + 1)^3. Unbiased, so that it is below 0 about as often as above for equal distributions.

    Args:
        a, b: features (N, F), (M, F).
        subsets: pairs that are drawn, each without replacement.
        size: of a subset, 2 at least; as many as either set has, and there is one pair only.
        seed: of the subsets: the same ones for one seed and one number of features.

    Reference: arXiv 1801.01401.
    """
    _comparable(a, b)
    if not 2 <= size <= min(len(a), len(b)) or subsets < 1:
        raise ValueError(
            f"{subsets} subsets of {size} out of {len(a)} and {len(b)} features: KID needs 1 subset at least, of 2 "
            "features at least, and as many of each set; evaluate more samples"
        )
    generator = torch.Generator().manual_seed(seed)
    values = torch.zeros(subsets, dtype=torch.float64)
    for i in range(subsets):
        x, y = (rows[torch.randperm(len(rows), generator=generator)[:size]].double() for rows in (a, b))
        values[i] = _within(x) + _within(y) - 2 * _kernel(x, y).mean()
    return float(values.mean()), float(values.std(correction=0))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> Tensor:
    """The mean kernel of different members of one set."""
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of generated features within the real manifold, and of real features within the generated one.

    A manifold is the union of balls around each of its features that reach to its k-th nearest neighbour.

    Args:
        real, generated: (N, F), (M, F), more than `neighbours` of each.
        neighbours: k.

    Reference: arXiv 1904.06991, Eqs. 1 and 2.
    """
    _comparable(real, generated)
    if not 1 <= neighbours < min(len(real), len(generated)):
        raise ValueError(
            f"the {neighbours} nearest neighbours need more than {neighbours} features of each set: got {len(real)} "
            f"and {len(generated)}; evaluate more samples"
        )
    real, generated = real.double(), generated.double()
    return _inside(generated, real, neighbours), _inside(real, generated, neighbours)


def _inside(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """The share of points that lie in one of the manifold's balls at least."""
    radii = _radii(manifold, neighbours)
    inside = [(_squares(rows, manifold) <= radii).any(1) for rows in points.split(BLOCK)]
    return float(torch.cat(inside).double().mean())


def _radii(manifold: Tensor, neighbours: int) -> Tensor:
    """(N,) squared distances to each one's k-th nearest other."""
    out = []
    for first in range(0, len(manifold), BLOCK):
        squares = _squares(manifold[first : first + BLOCK], manifold)
        rows = torch.arange(len(squares))
        squares[rows, first + rows] = math.inf
        out.append(squares.kthvalue(neighbours, dim=1).values)
    return torch.cat(out)


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (N, M)."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def _comparable(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: give (N, F) and (M, F) of "
            "one extractor"
        )
