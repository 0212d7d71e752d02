"""How many points a network call should hold: measured on the model and the machine."""

from __future__ import annotations

import logging
import math

import torch

from ..denoisers.checks import middle_sigma
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model, coefficient_device
from ..denoisers.rows import limit_rows
from ..solvers.auto import seconds_of
from .config import DistillConfig
from .families import FAMILIES, USUAL_POINTS, looks_ahead

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
    if not looks_ahead(config):
        return config.model_copy(update={"points": 1})
    samples = samples_timed(model)
    ratio = _ratio(model, samples, config)
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


def _ratio(model: Model, samples: int, config: DistillConfig) -> float:
    """Time of a call of two points a sample, over one of one: the fastest of a few taken in turn, as whatever else the
    machine does only makes them slower.
    """
    seeds = list(range(samples))
    denoiser, dtype = model.for_seeds(seeds), getattr(torch, config.dtype)
    sigma = torch.tensor(middle_sigma(model), dtype=torch.float64, device=coefficient_device(model.device))
    noise = unit_noise(seeds, model.shape, dtype, model.device) * sigma.to(model.device, dtype)
    fastest = {1: math.inf, 2: math.inf}
    with torch.no_grad():
        for _ in range(1 + REPEATS):  # the first warms up
            for points in fastest:
                x = noise.repeat_interleave(points, 0)
                took = seconds_of(lambda x=x: denoiser(x, sigma.expand(len(x))), x.device)
                fastest[points] = min(fastest[points], took)
    return fastest[2] / fastest[1]
