"""Group normalisation of parts with the statistics of the whole."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import GroupNorm

from .parts import ranges


class Statistics(NamedTuple):
    """Mean and 1 / standard deviation of every sample's groups, each (B, G) in float32."""

    mean: Tensor
    scale: Tensor

    def of(self, samples: slice) -> Statistics:
        """Of these samples."""
        return Statistics(self.mean[samples], self.scale[samples])


def statistics(x: Tensor, norm: GroupNorm, frames: int) -> Statistics:
    """What `norm` would find in x (B, C, T, *), without another tensor of its size.

    Two passes, m = mean(x), then v = mean((x - m)^2): the mean square less the squared mean cancels where the mean is
    large. The second pass also corrects the mean by mean(x - m), what rounding left of it.

    Args:
        frames: so many of T are looked at together.
    """
    count = x[0].numel() // norm.num_groups
    pieces = [x[:, :, part].unflatten(1, (norm.num_groups, -1)) for part in ranges(x.shape[2], frames)]
    over = tuple(range(2, x.ndim + 1))
    mean = _total([piece.float().sum(over, keepdim=True) for piece in pieces]) / count
    first, second = [], []
    for piece in pieces:
        away = piece.float() - mean
        first.append(away.sum(over, keepdim=True))
        second.append(away.square_().sum(over, keepdim=True))
    missed = _total(first) / count
    variance = _total(second) / count - missed.square()
    return Statistics((mean + missed).flatten(1), (variance + norm.eps).rsqrt().flatten(1))


def normalised(x: Tensor, norm: GroupNorm, known: Statistics) -> Tensor:
    """`norm` of x (B, C, *), a part of what these statistics are of."""
    ones = (1,) * (x.ndim - 1)
    groups = x.unflatten(1, (norm.num_groups, -1)).float()
    out = (groups - known.mean.unflatten(1, (-1, *ones))).mul_(known.scale.unflatten(1, (-1, *ones))).flatten(1, 2)
    if norm.affine:
        weight, bias = (t.float().unflatten(0, (-1, *ones[1:])) for t in (norm.weight, norm.bias))
        out = out.mul_(weight).add_(bias)
    return out.to(x.dtype)


def _total(values: list[Tensor]) -> Tensor:
    return sum(values[1:], values[0])
