"""How straight a model's ODE is: where Euler is nearly exact, there is little to learn."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model
from ..solvers.registry import MULTISTEP, SIMPLEST, USUAL, Ends, RuleSettings, make_rule, make_sigmas
from ..solvers.solve import solve

log = logging.getLogger("epd")
CALLS, MORE_CALLS = 5, 20
LITTLE = 0.01  # relative distance that is not worth a training run
PATIENCE = 30.0  # seconds; a model so large is no straight one, and its run will tell


def report_straightness(model: Model) -> None:
    """Says where training would gain little, in 25 calls of two rows; a model that is slow is not asked."""
    distance = euler_distance(model)
    if distance is None:
        log.info("%s is too large for a look at how straight its ODE is", model.name)
    elif distance < LITTLE:
        log.warning(
            "%s: Euler at %d calls is already within %.2g %% of the converged end: little to learn",
            model.name, CALLS, 100 * distance,
        )  # fmt: skip
    else:
        log.info("%s: Euler at %d calls is %.3g %% away from the converged end", model.name, CALLS, 100 * distance)


def euler_distance(model: Model) -> float | None:
    """|Euler at 5 calls - DPM-Solver++(2M) at 20| / |the latter| over two samples; None where it is too large.

    The second stands for the converged end: where the ODE is straight, and only there, the two agree.
    """
    noise = unit_noise([0, 1], model.shape, device=model.device)
    denoiser = model.for_seeds([0, 1])
    try:
        return _distance(denoiser, noise, model)
    except torch.OutOfMemoryError:
        return None


def _distance(denoiser: Denoiser, noise: Tensor, model: Model) -> float | None:
    with torch.no_grad():
        began = time.perf_counter()
        few = solve(make_rule(SIMPLEST), denoiser, noise, _sigmas(model, CALLS)).double()
        if not few.isfinite().all():
            return None
        if (time.perf_counter() - began) * MORE_CALLS / CALLS > PATIENCE:
            return None
        multistep = make_rule(MULTISTEP, RuleSettings(num_steps=MORE_CALLS))
        more = solve(multistep, denoiser, noise, _sigmas(model, MORE_CALLS)).double()
    return float((few - more).norm() / more.norm().clamp_min(1e-12))


def _sigmas(model: Model, steps: int) -> Tensor:
    return make_sigmas(USUAL[model.path], steps, Ends.of(model))
