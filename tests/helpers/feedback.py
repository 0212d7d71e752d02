"""Feedback for tiny networks: files with any scales, as learning would leave them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epd.accelerators.feedback_block import Feedback, Loop, Trained, own_copy, save_feedback
from helpers import tiny_pipelines

FAMILIES = ("dit", "pixart", "sd3")
DEPTH = 5


def deep(name: str) -> Any:  # noqa: ANN401
    """The tiny pipeline with DEPTH different blocks; the last of SD3's still is one without text."""
    pipe = tiny_pipelines.build(name)
    blocks = tiny_pipelines.network(pipe).transformer_blocks
    generator = torch.Generator().manual_seed(1)
    while len(blocks) < DEPTH:
        blocks.insert(0, changed(blocks[0], generator))
    return pipe


def changed(block: nn.Module, generator: torch.Generator) -> nn.Module:
    made = copy.deepcopy(block)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return made


def write(
    network: nn.Module, path: Path, scale: float = 0.0, begin: int = 1, count: int = 2, steps: tuple[int, ...] = (0, 2)
) -> Feedback:
    """Writes and returns feedback with this scale in all blocks of the loop, and another block than the network's."""
    blocks: Any = network.transformer_blocks
    loop = Loop(type(network).__name__, len(blocks), begin, count, 4, steps)
    block = own_copy(changed(blocks[begin], torch.Generator().manual_seed(2)))
    feedback = Feedback(block, count, torch.tensor([900.0, 500.0, 100.0]), torch.tensor([700.0, 300.0, 10.0]))
    nn.init.constant_(feedback.scale, scale)
    save_feedback(path, feedback, Trained(loop, (3.0, 2.0, 1.0, 0.5, 0.1), "tiny", {"rmse": 0.5}))
    return feedback
