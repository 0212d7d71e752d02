"""What a plan costs, before it is run: counted evaluations, timed calls."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from ..denoisers.checks import middle_sigma
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..denoisers.rows import RowLimited, limit_rows
from .gauss_newton import evaluations
from .objective import MOVES
from .parameters import Parameters
from .plan import Plan, parts_at
from .portions import portions
from .samples import kept_bytes
from .teacher import INTEGRATED, POOL_SEEDS, Teacher, block_size, cache_folder


@dataclass(frozen=True)
class Cost:
    """Estimates of a plan.

    Args:
        parameters: learned numbers.
        training_evaluations: network evaluations (rows) of all updates.
        teacher_evaluations: network evaluations (rows) of teacher trajectories, if none is cached.
        seconds: at the measured speed of this machine, teacher included.
        pool_memory: bytes of trajectories and noise, kept in main memory; large ones are read from disk in portions.
        memory: bytes of states, recorded calls and the Jacobian at work; without the network's weights and activations.
        rows: the most rows of one network call while training.
    """

    parameters: int
    training_evaluations: int
    teacher_evaluations: int
    seconds: float
    pool_memory: int
    memory: int
    rows: int

    def text(self, name: str) -> str:
        """One entry for a person."""
        value = getattr(self, name)
        if name == "seconds":
            return f"about {value:.0f} s here ({value / 60:.1f} min), at the speed of three timed calls"
        beside = {"pool_memory": "in main memory", "memory": "beside the network and its activations"}
        if name in beside:
            return f"about {value / 2**20:.1f} MiB {beside[name]}"
        return f"at most {value:,} in one network call" if name == "rows" else f"{value:,}"


def estimate(model: Model, plan: Plan, solved: bool = False) -> Cost:
    """Counts the network rows of a plan and times one call of as many rows as training makes at once.

    Args:
        solved: the teacher's trajectories are there already.
    """
    model = limit_rows(model)
    config, table = plan.config, plan.tables[0]
    parameters = Parameters.of(table, plan.learn)
    if config.gauss_newton:
        parts = sum(parts_at(plan, n) for n in range(plan.total))
        training = evaluations(parameters) * (config.batch // config.accumulate) * parts
    else:
        # A backward pass costs about two forward ones.
        each = 3 + portions(model, plan).recompute
        each += (MOVES * each + 1) * (config.relax > 0)
        training = each * table.nfe * config.batch * plan.total
    held_out = table.nfe * config.validation * (plan.total // config.validate_every)
    each = Teacher(model, config, torch.tensor(table.sigmas), cache_folder()).evaluations
    teacher = 0 if solved else each * (config.pool + config.validation)
    limit, total = model.rows(gradients=not config.gauss_newton), training + held_out
    rows = min(limit, portions(model, plan).train * table.num_parallel)
    speed = rows_per_second(model, rows, getattr(torch, config.dtype))
    return Cost(
        len(parameters.start), total, teacher, (total + teacher) / speed, pool_bytes(model, plan),
        working_bytes(model, plan), limit,
    )  # fmt: skip


def pool_bytes(model: Model, plan: Plan) -> int:
    """Of training and held-out samples that are kept: noise, and the teacher's states on the sigmas that are compared.
    """
    config, numbers = plan.config, math.prod(model.shape)
    states, size = 1 if config.objective == "end" else plan.tables[0].num_steps, _sample_bytes(model, plan) // numbers
    return sum(kept_bytes(count, states, numbers, size) for count in (config.pool, config.validation))


def working_bytes(model: RowLimited, plan: Plan) -> int:
    """Of one chunk: what a walk keeps of it, and with Gauss-Newton the recorded calls and the Jacobian; or of one block
    of the teacher's, where that is more.

    A walk has the state, its step's points, their rows for the network, what it returned and the slopes at once, and
    the remembered slopes. The Jacobian's columns and three residuals are float64 whatever the state is.
    """
    table, width = plan.tables[0], plan.tables[0].num_parallel
    sizes, sample, numbers = portions(model, plan), _sample_bytes(model, plan), math.prod(model.shape)
    walk = (3 + 4 * width + table.columns) * sample
    most = max(sizes.measure * walk, _teacher_bytes(model, plan))
    if not plan.config.gauss_newton:
        return most
    columns = 3 + len(Parameters.of(table, plan.learn).start)
    return max(most, sizes.train * (walk + table.nfe * sample + 8 * columns * numbers))


def _teacher_bytes(model: Model, plan: Plan) -> int:
    """Of one block: what the integrator keeps, or a rule's history, and the states that are kept of it, twice."""
    config, numbers = plan.config, math.prod(model.shape)
    together = min(block_size(numbers), max(config.pool, config.validation))
    states = 1 if config.objective == "end" else plan.tables[0].num_steps
    if config.teacher == "exact":
        return together * numbers * 8 * (INTEGRATED + states)
    return together * _sample_bytes(model, plan) * (8 + 2 * states)


def _sample_bytes(model: Model, plan: Plan) -> int:
    return math.prod(model.shape) * (8 if plan.config.dtype == "float64" else 4)


def rows_per_second(model: Model, rows: int, dtype: torch.dtype) -> float:
    """Of three timed calls of so many rows, without gradients."""
    seeds = list(range(POOL_SEEDS, POOL_SEEDS + rows))
    denoiser, x = model.for_seeds(seeds), unit_noise(seeds, model.shape, dtype, model.device)
    sigma = torch.tensor(middle_sigma(model), dtype=torch.float64)
    x = x * sigma.to(x.dtype)
    with torch.no_grad():
        denoiser(x, sigma)
        began = time.perf_counter()
        for _ in range(3):
            denoiser(x, sigma)
        if x.is_cuda:
            torch.cuda.synchronize()
    return 3 * rows / (time.perf_counter() - began)
