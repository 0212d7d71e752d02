"""How long a sampler takes on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..solvers.auto import seconds_of
from ..solvers.solve import solve
from ..solvers.walk import Rule

REPEATS = 7


def latencies(
    model: Model, solvers: Sequence[tuple[Rule, torch.Tensor]], batch: int, dtype: torch.dtype
) -> list[float]:
    """Milliseconds in which each solver makes `batch` samples: the median of 7 runs, taken in turn after one each.

    What a pipeline does beside its sampler (encoding prompts, decoding latents) is not in it.

    Args:
        solvers: rules with their noise levels (N+1,).
    """
    seeds = list(range(batch))
    denoiser, noise = model.for_seeds(seeds), unit_noise(seeds, model.shape, dtype, model.device)
    taken: list[list[float]] = [[] for _ in solvers]
    with torch.no_grad():
        for _ in range(1 + REPEATS):  # the first warms up
            for times, (rule, sigmas) in zip(taken, solvers, strict=True):
                solving = partial(solve, rule, denoiser, noise, sigmas, check=False)
                times.append(1000 * seconds_of(solving, noise.device))
    return [statistics.median(times[1:]) for times in taken]
