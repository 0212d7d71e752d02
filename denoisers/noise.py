"""Start noise that belongs to its seed."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor


def unit_noise(
    seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Tensor:
    """Standard normal noise (B, *shape), row b drawn from seed b alone: a sample never depends on its batch.

    Always drawn on the CPU in float32 and then cast, so that every dtype and device gets the same noise, and the noise
    is that of a diffusers pipeline called with `generator=[torch.Generator().manual_seed(s) for s in seeds]`.

    Args:
        seeds: (B,) non-negative integers.
        shape: shape of one sample.

    Raises:
        ValueError: for no seeds, or one that is negative or no integer.
    """
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise ValueError(f"seeds = {list(seeds)[:8]} must be integers, one for each sample") from error
    if not numbers or min(numbers) < 0:
        raise ValueError(f"seeds = {numbers[:8]} must be non-negative integers, one or more")
    generator = torch.Generator()
    rows = [torch.randn(tuple(shape), generator=generator.manual_seed(seed)) for seed in numbers]
    return torch.stack(rows).to(device=device, dtype=dtype)
