"""What a plan costs, before it is run: counted evaluations, timed calls."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from .gauss_newton import evaluations
from .parameters import Parameters
from .plan import Plan, parts_at
from .teacher import Teacher, cache_folder
from .train import POOL_SEEDS


@dataclass(frozen=True)
class Cost:
    """Estimates of a plan.

    Args:
        parameters: learned numbers.
        training_evaluations: network evaluations (rows) of all updates.
        teacher_evaluations: network evaluations (rows) of teacher trajectories, if none is cached.
        seconds: at the measured speed of this machine, teacher included.
        memory: bytes of states and recorded calls, without the network's own.
    """

    parameters: int
    training_evaluations: int
    teacher_evaluations: int
    seconds: float
    memory: int

    def text(self, name: str) -> str:
        """One entry for a person."""
        value = getattr(self, name)
        if name == "seconds":
            return f"about {value:.0f} s here ({value / 60:.1f} min), at the speed of three timed calls"
        return f"about {value / 2**20:.1f} MiB beside the network" if name == "memory" else f"{value:,}"


def estimate(model: Model, plan: Plan) -> Cost:
    """Counts the network rows of a plan and times one call of a training batch."""
    config, table = plan.config, plan.tables[0]
    parameters = Parameters.of(table, plan.learn)
    rows = config.batch // config.accumulate
    if config.gauss_newton:
        parts = sum(parts_at(plan, n) for n in range(plan.total))
        training = evaluations(parameters) * rows * parts
    else:
        training = 3 * table.nfe * config.batch * plan.total  # a backward pass costs about two forward ones
    held_out = table.nfe * config.validation * (plan.total // config.validate_every)
    each = Teacher(model, config, torch.tensor(table.sigmas), cache_folder()).evaluations
    teacher = each * (config.pool + config.validation)
    element = 8 if config.dtype == "float64" else 4
    size = int(torch.Size(model.shape).numel()) * element
    kept = size * (config.pool + 2 * rows * table.nfe) + 8 * rows * size // element * len(parameters.start)
    speed = _rows_per_second(model, rows, getattr(torch, config.dtype))
    total = training + held_out
    return Cost(len(parameters.start), total, teacher, (total + teacher) / speed, kept)


def _rows_per_second(model: Model, rows: int, dtype: torch.dtype) -> float:
    seeds = list(range(POOL_SEEDS, POOL_SEEDS + rows))
    denoiser, x = model.for_seeds(seeds), unit_noise(seeds, model.shape, dtype, model.device)
    sigma = torch.ones((), dtype=torch.float64)
    with torch.no_grad():
        denoiser(x, sigma)
        began = time.perf_counter()
        for _ in range(3):
            denoiser(x, sigma)
        if x.is_cuda:
            torch.cuda.synchronize()
    return 3 * rows / (time.perf_counter() - began)
