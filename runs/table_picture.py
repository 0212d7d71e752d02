"""A table as a picture, to see it change over a run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..solvers.table import Table

CELL = 24  # pixels
FULL = 1.5  # weights of this size and more have the full colour
RED, BLUE, PALE = (178, 24, 43), (33, 102, 172), (240, 240, 240)


def table_picture(table: Table) -> Tensor:
    """uint8 (H, W, 3): a row for each step, a cell for each number; zero is pale, red is positive, blue negative.

    From left to right, a gap between: weights of the update (anchor, points, memory); of the look-ahead to each point;
    where the points lie; logarithms of the scales, and of the factors of the guidance where one is not 1; logarithm of
    the step's noise levels' ratio.
    """
    lookahead = table.effective_lookahead
    scales = np.concatenate([np.log(table.anchor_scale)[:, None], np.log(table.sigma_scale)], 1)
    factors = np.concatenate([np.log(table.anchor_guidance)[:, None], np.log(table.guidance_scale)], 1)
    blocks = [
        np.concatenate([table.anchor[:, None], table.weights * table.slope_scale, table.memory], 1),
        *(lookahead[:, j] for j in range(lookahead.shape[1])),
        table.nodes,
        scales,
        *([factors] if table.scales_guidance else []),
        np.log(table.sigmas[:-1] / table.sigmas[1:])[:, None] / 4,
    ]
    sheets = [_sheet(block) for block in blocks if block.shape[1]]
    gap = torch.full((sheets[0].shape[0], CELL, 3), 255, dtype=torch.uint8)
    return torch.cat([part for sheet in sheets for part in (sheet, gap)][:-1], 1)


def _sheet(numbers: np.ndarray) -> Tensor:
    """A block's cells."""
    share = torch.tensor(numbers / FULL).clamp(-1, 1)[..., None]
    full = torch.where(share > 0, torch.tensor(RED), torch.tensor(BLUE)).double()
    pale = torch.tensor(PALE).double()
    colour = torch.lerp(pale.expand_as(full), full, share.abs()).round().byte()
    return colour.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
