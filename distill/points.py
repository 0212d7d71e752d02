"""How many points a network call should hold: measured on the model and the machine."""

from __future__ import annotations

import logging
import math
import statistics
import time

import torch

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model, coefficient_device
from ..denoisers.rows import limit_rows
from .config import DistillConfig
from .families import FAMILIES, USUAL_POINTS

log = logging.getLogger("epd")
NUMBERS = 2**16  # in the samples that are timed together: what people draw at once is few where samples are large
MOST = 64  # samples
FREE = 1.25  # times as long as a call of half the rows: then its second point pays
REPEATS = 5


def settled(model: Model, config: DistillConfig) -> DistillConfig:
    """The config with its points decided: 2 where a call of two points a sample takes hardly longer than one of one.

    At equal evaluations one point a call is ahead of two, at equal sequential calls two are ahead of one: which of them
    is faster is the machine's to say. Other families than `dense` were made for two.
    """
    if config.points != "auto":
        return config
    family = FAMILIES[config.family]
    if family.points or not family.analytic:
        return config.model_copy(update={"points": family.points or USUAL_POINTS})
    samples = samples_timed(model)
    ratio = _seconds(model, samples, 2, config) / _seconds(model, samples, 1, config)
    points = 2 if ratio < FREE else 1
    log.info(
        "points = %d: a call of %d rows takes %.2f times as long as one of %d here (2 points below %g)",
        points, 2 * samples, ratio, samples, FREE,
    )  # fmt: skip
    return config.model_copy(update={"points": points})


def samples_timed(model: Model) -> int:
    """How many samples a timed call holds, one point of each: what fits twice into the model's calls, 64 at most."""
    most = min(MOST, NUMBERS // math.prod(model.shape), limit_rows(model).rows() // 2)
    return max(1, most)


def _seconds(model: Model, samples: int, points: int, config: DistillConfig) -> float:
    """Median of a few calls, after one that warms up."""
    seeds = list(range(samples))
    denoiser, dtype = model.for_seeds(seeds), getattr(torch, config.dtype)
    x = unit_noise(seeds, model.shape, dtype, model.device).repeat_interleave(points, 0)
    sigma = torch.ones((), dtype=torch.float64, device=coefficient_device(model.device))
    times = []
    with torch.no_grad():
        for _ in range(1 + REPEATS):
            began = time.perf_counter()
            denoiser(x, sigma.expand(len(x)))
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
