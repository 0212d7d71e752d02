"""What a report computes with the model: trajectories, and the same seeds drawn by several solvers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model
from ..denoisers.rows import limit_rows
from ..solvers.exact import converged
from ..solvers.solve import solve
from ..solvers.table import Table
from ..solvers.walk import Rule
from .comparison import Cell
from .handmade import candidate_schedules, handmade
from .inspection import Inspection, inspect
from .metrics import sample_errors
from .report_run import Run, at_calls

log = logging.getLogger("epd")
SHOWN = 2  # samples whose trajectories are pictured


@dataclass(frozen=True)
class Panel:
    """A solver's samples.

    Args:
        images: (B, C, H, W) in [0, 1].
        rmse: over these samples, to the converged ones; None of those themselves.
    """

    name: str
    images: Tensor
    rmse: float | None


@dataclass(frozen=True)
class Look:
    """What the model shows of a run: parts that could not be had are None or empty, and `problem` says why."""

    inspection: Inspection | None
    gallery: tuple[Panel, ...]
    seeds: tuple[int, ...]
    problem: str = ""


def look(model: Model, run: Run, samples: int, seeds: Sequence[int], tolerance: float, dtype: torch.dtype) -> Look:
    """Follows the trajectories of a run's table and draws the gallery.

    Args:
        samples: that the trajectories' numbers are of; below 2: they are not followed.
        seeds: of the gallery.
    """
    table = run.table
    if table is None:
        return Look(None, (), tuple(seeds))
    model = limit_rows(model)
    found = None
    try:
        if samples >= 2:
            found = inspect(
                model, table, samples, shown=seeds[:SHOWN], tolerance=tolerance, dtype=dtype, name=run.name
            )
        panels = gallery(model, run, table, seeds, tolerance, dtype)
    except FloatingPointError as error:
        log.warning("%s: not everything could be drawn: %s", run.name, error)
        return Look(found, (), tuple(seeds), str(error))
    return Look(found, panels, tuple(seeds))


def gallery(
    model: Model, run: Run, table: Table, seeds: Sequence[int], tolerance: float, dtype: torch.dtype
) -> tuple[Panel, ...]:
    """The learned solver, the best hand-made one at equal calls where a comparison names it, and the converged
    samples; empty where samples are no pictures.
    """
    noise = unit_noise(seeds, model.shape, dtype, model.device)
    denoiser = model.for_seeds(seeds)
    with torch.no_grad():
        exact = converged(denoiser, noise, (model.sigma_max, model.sigma_min), tolerance, tolerance)[-1]
        if model.decode(exact).ndim != 4:
            return ()
        ends = {f"learned, {table.depth} calls": _end(table.rule(model.device), denoiser, noise, table)}
        cells = run.cells()
        best = at_calls(run.comparison, cells[0]) if run.comparison and cells else None
        by_hand = None if best is None else _handmade_end(best.rival, model, denoiser, noise)
        if best is not None and by_hand is not None:
            ends[f"{best.rival.solver}, {best.rival.calls} calls"] = by_hand
        errors = [float(sample_errors(end, exact).square().mean().sqrt()) for end in ends.values()]
        drawn = [Panel(name, model.decode(x), e) for (name, x), e in zip(ends.items(), errors, strict=True)]
        return (*drawn, Panel("converged", model.decode(exact), None))


def _end(rule: Rule, denoiser: Denoiser, noise: Tensor, table: Table) -> Tensor:
    return solve(rule, denoiser, noise, torch.tensor(table.sigmas))


def _handmade_end(cell: Cell, model: Model, denoiser: Denoiser, noise: Tensor) -> Tensor | None:
    """End points of a measured hand-made solver; None where its name or schedule is not among ours any more."""
    solver = next((one for one in handmade(model.path) if one.name == cell.solver), None)
    schedules = candidate_schedules(model.path, model.sigma_min, model.sigma_max, model.alphas_cumprod)
    if solver is None or cell.schedule not in schedules:
        return None
    sigmas = schedules[cell.schedule](solver.steps(cell.asked))
    return solve(solver.rule(sigmas), denoiser, noise, sigmas)
