"""Policies of accelerated sampling for tests: what they decide is known, or depends on the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from epd.accelerators.heads import Heads, Layout
from epd.accelerators.heads_file import Learned, save_heads


def layout_of(channels: int, steps: int, **changes: Any) -> Layout:  # noqa: ANN401
    """Small heads, without a sparse one."""
    return Layout(**{"channels": channels, "steps": steps, "width": 4, **changes})


def saved(heads: Heads, folder: Path) -> str:
    """The file of these heads."""
    path = folder / "policy.safetensors"
    steps = heads.layout.steps
    save_heads(path, heads, Learned("toy", tuple(float(n) for n in range(steps, -1, -1)), {"calls": 3.0}))
    return str(path)


def undecided(layout: Layout, seed: int = 2, scale: float = 0.3) -> Heads:
    """Heads whose decisions differ from sample to sample and from step to step."""
    heads, generator = Heads(layout, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in heads.parts.values():
            last: Any = head.last
            last.weight.copy_(scale * torch.randn(last.weight.shape, generator=generator))
            last.bias.zero_()
    return heads


def always(layout: Layout, head: str, choice: int) -> Heads:
    """Heads of which one always makes this choice."""
    heads = Heads(layout)
    bias: Any = heads.parts[head].last
    with torch.no_grad():
        bias.bias.copy_(torch.where(torch.arange(len(bias.bias)) == choice, 9.0, -9.0))
    return heads
