"""The network calls of a run before it is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..pipelines.layout import table_layout
from ..pipelines.placement import placed
from ..pipelines.scheduler import EPDScheduler
from ..solvers.schedules import checked_sigmas
from ..solvers.walk import Rule, plan
from .moment import Moment


def of_solve(
    rule: Rule, sigmas: Tensor | ArrayLike, samples: int = 1, copies: int = 1, branches: int = 1,
    batched: bool = True,
) -> list[Moment]:  # fmt: skip
    """Those of `epd.solve(rule, model, noise, sigmas)`."""
    asks = plan(rule, sigmas)
    levels = checked_sigmas(sigmas).tolist()
    out = []
    for step, questions in enumerate(asks):
        for index, ask in enumerate(questions):
            told = ask.sigma.tolist()
            for slots in [tuple(range(len(told)))] if batched else [(k,) for k in range(len(told))]:
                state = index == 0 and slots[0] == 0 and told[0] == levels[step]
                sigma = tuple(told[k] for k in slots)
                out += _branched(Moment(step, len(asks), index, slots, 0, copies, samples, sigma, state), branches)
    return out


def of_scheduler(
    pipe: Any,  # noqa: ANN401 - any pipeline of diffusers
    begin: int = 0,
    samples: int = 1,
    copies: int = 1,
    branches: int = 1,
) -> list[Moment]:
    """Those of the next run of an enabled pipeline; none where its solver is no table.

    Args:
        begin: index of the first call (image-to-image).
    """
    scheduler = pipe.scheduler
    if not isinstance(scheduler, EPDScheduler) or scheduler.table is None:
        return []
    layout = table_layout(scheduler.table, scheduler.frame, placed(pipe, scheduler.parallel)[0])
    out, run = [], layout.run(begin)
    while not run.finished:  # a dry run on a state of zeros: the calls do not depend on it
        call, slots = run.call, run.call.slots[: run.rows]
        sigma = call.sigma[: run.rows]
        moment = Moment(call.step, layout.steps, call.ask, slots, 0, copies, samples, sigma, run.at_state)
        out += _branched(moment, branches)
        points = run.open(torch.zeros(1, 1)) if run.points is None else run.points
        run.advance(points, torch.zeros_like(points))
    return out


def _branched(moment: Moment, branches: int) -> list[Moment]:
    return [replace(moment, branch=branch) for branch in range(branches)]
