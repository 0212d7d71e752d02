"""Which tokens of a picture change: their scores, the choice among them, and their places in the picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def tokens_of(slopes: Tensor, count: int, pixels: int = 1) -> Tensor:
    """(B, N, C, P): P pixels of each token in raster order, of pictures (B, C, H, W) or packed tokens (B, N, C P).

    Args:
        count: N.
        pixels: P of packed tokens, which come last in their rows.

    Raises:
        ValueError: where N patches of equal sides do not tile the picture.
    """
    if slopes.ndim == 3 and slopes.shape[1] == count:
        return slopes.unflatten(2, (-1, pixels))
    side = _side(slopes.shape[1:], count)
    batch, channels, height, width = slopes.shape
    cut = slopes.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, count, channels, side**2)


def spread(mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask of tokens (B, N) as one of states (B, *shape), with sides of 1 that broadcast."""
    if len(shape) == 2 and shape[0] == mask.shape[1]:
        return mask[..., None]
    side = _side(shape, mask.shape[1])
    grid = mask.unflatten(1, (shape[1] // side, shape[2] // side))
    return grid.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]


def _side(shape: torch.Size, count: int) -> int:
    if len(shape) == 3:
        side = math.isqrt(shape[1] * shape[2] // count)
        if side and not (shape[1] % side or shape[2] % side) and shape[1] * shape[2] == count * side**2:
            return side
    raise ValueError(
        f"the network has {count} tokens, and a state of shape {tuple(shape)} is no picture of so many "
        "patches: pictures that stand beside the state are not supported; take the accelerator out"
    )


def deviation(tokens: Tensor) -> Tensor:
    """(B, N): standard deviation over the channels of (B, N, C, P), mean of the pixels (arXiv 2502.10389)."""
    return tokens.float().std(dim=2, correction=0).mean(-1)


def norm(tokens: Tensor) -> Tensor:
    """(B, N): root mean square of (B, N, C, P)."""
    return tokens.float().square().mean(dim=(2, 3)).sqrt()


def falling_ratios(
    tokens: int, steps: int, ratio: float = 0.5, change: int = 256, every: int = 4, start: int = 4, multiple: int = 64
) -> tuple[float, ...]:
    """`RAS(ratio=...)` as published with its dynamic ratio: early steps compute more, late ones fewer.

    Of N tokens, step i of T drops floor((1 - a) N) + c (floor(i / L) - floor((T + start) / (2 L))), rounded down to a
    multiple of m, which is few numbers of tokens for compiled networks; at least none, at most all but m.

    Args:
        tokens, steps: N and T.
        ratio: a, in the middle of the run.
        change, every: c tokens each L steps.
        start: the first step that is not whole.
        multiple: m.

    Raises:
        ValueError: for a ratio out of (0, 1], or numbers below 1.

    Reference: arXiv 2502.10389; its Lumina-Next has N = 4096, T = 30 and what is left at its default here.
    """
    numbers = {"tokens": tokens, "steps": steps, "every": every, "multiple": multiple}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} = {value} must be 1 at least")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio = {ratio} must lie in (0, 1]: it is the share of the tokens that is computed")
    middle = (steps + start) // (2 * every)
    skips = [int((1 - ratio) * tokens + 1e-9) + change * (i // every - middle) for i in range(steps)]
    most = max(0, tokens - multiple)
    return tuple(1 - min(max(skip // multiple * multiple, 0), most) / tokens for skip in skips)


def choose(scores: Tensor, drops: Tensor, active: int, high: float, strength: float, published: bool) -> Tensor:
    """(B, n) the tokens that are computed, in rising order.

    Dropped are, of N - n tokens, the share `high` from the top of the scores and the others from the bottom. A token
    that was dropped D times counts as s exp(-k D) at the top and s exp(k D) at the bottom, so that it is less likely
    to be dropped again at either end. As published, D makes it s exp(k D) at both, which at the top keeps it dropped.

    Args:
        scores, drops: s and D, (B, N).
        active: n.
        strength: k.
    """
    count = scores.shape[1]
    skip = count - active
    top = int(high * skip + 1e-9)
    aged = strength * drops
    falling = (scores * (aged if published else -aged).exp()).argsort(dim=1, descending=True, stable=True)
    dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(1, falling[:, :top], True)
    rising = (scores * aged.exp()).masked_fill(dropped, math.inf).argsort(dim=1, stable=True)
    dropped = dropped.scatter(1, rising[:, : skip - top], True)
    return dropped.to(torch.uint8).argsort(dim=1, stable=True)[:, :active]
