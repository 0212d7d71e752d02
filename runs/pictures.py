"""Pictures as bytes: what TensorBoard, grids and reports show."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST = 64  # pictures are enlarged by a whole factor to at least this many pixels, without smoothing
GAP = 4
PAPER = 255


def to_bytes(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) of pictures (B, C, H, W) in [0, 1]; C is 1 or 3, else the first three channels are shown.

    Raises:
        ValueError: for another number of dimensions, or no picture.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images have shape {tuple(images.shape)}: give at least one as (B, C, H, W)")
    images = images.detach().float().cpu().nan_to_num(0.0)
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, [0, 1, min(2, images.shape[1] - 1)]]
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)


def tile(images: Tensor, columns: int, gap: int = GAP) -> Tensor:
    """uint8 (H, W, 3): pictures (B, C, H, W) in [0, 1], row by row, small ones enlarged by a whole factor."""
    if columns < 1:
        raise ValueError(f"columns = {columns} must be at least 1")
    pixels = to_bytes(images)
    factor = max(1, math.ceil(SMALLEST / max(pixels.shape[1:3])))
    pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    count, height, width, _ = pixels.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    sheet = torch.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), PAPER, dtype=torch.uint8)
    for i in range(count):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = pixels[i]
    return sheet
