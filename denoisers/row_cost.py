"""What one row of a network call takes in memory, measured by calling it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .live_memory import LiveMemory
from .noise import unit_noise
from .protocol import Denoiser, Model

MEASURED_IN = torch.float32


@dataclass(frozen=True)
class RowCost:
    """Bytes of a call of one float32 row.

    Args:
        call: what lives together at its peak, beside what was there before.
        kept: what its denoiser goes on to keep, for instance of its conditions.
    """

    call: int
    kept: int


def row_cost(model: Model, gradients: bool) -> RowCost:
    """Measured; activations are included with gradients."""
    x = unit_noise([0], model.shape, MEASURED_IN, model.device)
    sigma = torch.tensor(model.sigma_max, dtype=torch.float64)

    def call(denoiser: Denoiser) -> None:
        with torch.set_grad_enabled(gradients):
            denoised = denoiser(x.requires_grad_(gradients), sigma)
            if denoised.requires_grad:
                torch.autograd.grad(denoised.sum(), x)

    call(model.for_seeds([0]))  # what the first call loads for good is no cost of a row
    if torch.device(model.device).type != "cuda":
        with LiveMemory() as memory:
            denoiser = model.for_seeds([0])
            call(denoiser)
        return RowCost(memory.peak, memory.now)
    torch.cuda.synchronize(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    denoiser = model.for_seeds([0])
    call(denoiser)
    kept = torch.cuda.memory_allocated(model.device) - before
    return RowCost(torch.cuda.max_memory_allocated(model.device) - before, kept)


def rows_within(max_memory: int, cost: RowCost, x: Tensor) -> int:
    """How many of these rows (R, *S) a call may hold, so that all of them together stay within so many bytes.

    A question's answer holds its R rows twice while they are evaluated part by part (as they came, and denoised), and
    four times afterwards, when the slopes are made of them.

    Raises:
        ValueError: where not one row fits.
    """
    scale = max(1.0, x.element_size() / MEASURED_IN.itemsize)
    states = 2 * x.nbytes + 64 * len(x) + int(len(x) * scale * cost.kept)  # noise levels, float64, among them
    call = int(scale * cost.call)
    if max_memory < max(states + call, 4 * x.nbytes):
        raise ValueError(
            f"max_memory = {max_memory} bytes are too few for {len(x)} rows, whose states and conditions take {states} "
            f"and one call of a single row {call}: give {max(states + call, 4 * x.nbytes)} or more, or solve fewer "
            "samples together"
        )
    return max(1, (max_memory - states) // max(call, 1))
