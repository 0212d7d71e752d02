"""Start noise that belongs to its seed."""

from __future__ import annotations

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
    """
    generator = torch.Generator()
    rows = [torch.randn(tuple(shape), generator=generator.manual_seed(int(seed))) for seed in seeds]
    return torch.stack(rows).to(device=device, dtype=dtype)
