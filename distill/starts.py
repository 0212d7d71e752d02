"""Which schedules training starts from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.protocol import Model
from ..solvers.registry import SCHEDULES, Ends, make_sigmas
from .bends import Bends, bends_of
from .config import DistillConfig
from .families import FAMILIES

BENDS = "bends"  # the schedule that follows from a look at the model


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Args:
        number: rho or shift of the schedule.
        far: the last fan point starts far ahead.
        asks: a family whose first step is analytic begins with a call all the same.
        order: of the multistep weights, 1 or 2.
    """

    schedule: str
    number: float
    far: bool = False
    asks: bool = False
    order: int = 2


# Which start leads to the best optimum depends on the model, the count of calls and the batches, and some updates from
# each tell. Fixed sigmas are those of usual schedules. Learned ones begin where the model bends, `number` being the
# power of `Bends.grid`, or from usual schedules. A fan's last point far ahead finds better optima.
FIXED_STARTS = {
    "ve": (Start("polynomial", 7.0), Start("time_uniform", 1.0), Start("polynomial", 3.0), Start("logsnr", 1.0)),
    "flow": (Start("flow", 1.0), Start("flow", 3.0), Start("flow", 0.5)),
}
LEARNED_STARTS = {
    "ve": (
        Start(BENDS, 0.5, True),
        Start(BENDS, 0.35, True),
        Start("time_uniform", 1.0, True),
        Start("polynomial", 7.0, True),
        Start(BENDS, 0.5),
        Start("polynomial", 7.0),
    ),
    "flow": (Start(BENDS, 0.5, True), Start(BENDS, 0.35, True), Start("flow", 1.0, True), Start("flow", 3.0)),
}
# Hand-made solvers that a run which begins with a call may start from.
HANDMADE_STARTS = {
    "ve": tuple(Start("polynomial", rho, True, True, order) for rho in (7.0, 3.0) for order in (1, 2)),
    "flow": tuple(Start("flow", shift, True, True, order) for shift in (1.0, 2.0, 3.0) for order in (1, 2)),
}
ASTRAY = 0.1  # of `Bends.astray`: where the analytic slope is so wrong, a start without it is tried, too
FEWEST_STARTS = 2
ADAM_START_COST = 28  # evaluations per sample of all starts' tables together
START_COST = 600  # evaluations per sample of one update of all starts together: cheap structures try more of them
Look = Callable[[], Bends]


def starts(config: DistillConfig, path: str) -> tuple[Start, ...]:
    """The starts of a run; a given schedule is the only one."""
    learn = config.learn if config.learn is not None else FAMILIES[config.family].learn
    if config.schedule is not None:
        row = SCHEDULES[config.schedule]
        number = {"rho": config.rho, "shift": config.shift}.get(row.shape or "", row.number)
        return (Start(config.schedule, number, "sigmas" in learn),)
    return (LEARNED_STARTS if "sigmas" in learn else FIXED_STARTS)[path]


def look_at(config: DistillConfig, model: Model) -> Look:
    """Looks where a model bends when it is called first, and remembers."""
    ends = Ends.of(model, config.sigma_min, config.sigma_max)
    return functools.cache(lambda: bends_of(model, ends, getattr(torch, config.dtype)))


def start_sigmas(config: DistillConfig, model: Model, num_steps: int, start: Start, look: Look | None = None) -> Tensor:
    """One starting schedule between the ends that the config asks for.

    Args:
        look: of `look_at`, shared between starts.
    """
    ends = Ends.of(model, config.sigma_min, config.sigma_max)
    if start.schedule != BENDS:
        return make_sigmas(start.schedule, num_steps, ends, start.number)
    inner = (look or look_at(config, model))().grid(num_steps - 1, start.number)
    for digits in (4, 6, 9, 17):  # few: the same start for the same model, however a processor rounds
        rounded = [float(f"{sigma:.{digits}g}") for sigma in inner.tolist()]
        levels = torch.tensor([ends.sigma_max, *rounded, ends.sigma_min], dtype=torch.float64)
        if bool((levels.diff() < 0).all()):
            break
    return levels
