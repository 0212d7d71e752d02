"""How the cells of a comparison are measured: a table, or the best of some solvers on the best of some schedules."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers.protocol import Model
from ..solvers.answers import MakeAnswer, batched
from ..solvers.table import Table
from .batches import Batch, Run, ruled, run_all
from .comparison import Cell
from .handmade import HandMade, Schedule
from .metrics import Features, bootstrap_interval, extract, frechet_distance, rmse, sample_errors

log = logging.getLogger("epd")
TIMINGS = 3


@dataclass(frozen=True)
class Judges:
    """The converged end points and the views in which others are compared with them.

    Args:
        end: in main memory.
        data: features of data (M, F).
        device: where `features` and `classifier` are handed their samples.
    """

    end: Tensor
    features: Features | None
    classifier: Features | None
    data: Tensor | None
    device: str

    def measures(self, end: Tensor) -> dict[str, Any]:
        """What a cell says of a solver's end points, by the names of its fields."""
        errors = sample_errors(end, self.end)
        out: dict[str, Any] = {
            "rmse": rmse(end, self.end),
            "median": float(errors.quantile(0.5)),
            "interval": bootstrap_interval(errors),
        }
        if self.features is not None:
            of_end = extract(self.features, end, self.device)
            out["frechet"] = frechet_distance(of_end, extract(self.features, self.end, self.device))
            out["frechet_data"] = None if self.data is None else frechet_distance(of_end, self.data)
        if self.classifier is not None:
            classes = [extract(self.classifier, x, self.device).argmax(1) for x in (end, self.end)]
            out["agreement"] = float((classes[0] == classes[1]).double().mean())
        return out


@dataclass(frozen=True)
class Work:
    """What a comparison is measured on.

    Args:
        candidates: usual schedules.
        few: the tuning samples, the first ones of all.
        batches: all samples.
        dtype: of the states.
    """

    model: Model
    candidates: Mapping[str, Schedule]
    few: Sequence[Batch]
    batches: Sequence[Batch]
    judges: Judges
    dtype: torch.dtype


@dataclass(frozen=True)
class Contender:
    """One way to solve at a count of calls, of which the best on the tuning samples is measured.

    Args:
        solver: its name.
        schedule: the name of its schedule, or what else tells it from others.
        steps: N.
        run: what it does.
    """

    solver: str
    schedule: str
    steps: int
    run: Run

    @classmethod
    def of(cls, solver: HandMade, schedule: str, sigmas: Tensor) -> Contender:
        """A hand-made solver on these sigmas."""
        return cls(solver.name, schedule, len(sigmas) - 1, ruled(solver.rule(sigmas), sigmas))


def handmade_cell(solver: HandMade, work: Work, at: int) -> Cell | None:
    """The solver on its best schedule, or None where it cannot take a step or is finite on no schedule."""
    steps = solver.steps(at)
    if steps < 1:
        return None
    contenders = [Contender.of(solver, name, make(steps)) for name, make in work.candidates.items()]
    return best_cell(solver.group, at, contenders, work)


def table_cell(name: str, group: str, table: Table, work: Work, answer: MakeAnswer = batched) -> Cell:
    """The table on all samples, at its own depth."""
    sigmas = torch.tensor(table.sigmas)  # a copy: tables are read-only
    done = run_all(ruled(table.rule(work.model.device), sigmas, answer), work.batches, TIMINGS)
    cell = Cell(name, group, True, done.calls, done.calls, done.evaluations, table.num_steps, "learned",
                seconds=done.seconds, **work.judges.measures(done.end))  # fmt: skip
    log.info("%-28s %2d calls, %2d evaluations: RMSE %.4f", name, done.calls, done.evaluations, cell.rmse)
    return cell


def best_cell(
    group: str, at: int, contenders: Sequence[Contender], work: Work, training: int | None = None
) -> Cell | None:
    """The contender that is best on the tuning samples, on all samples; None where none is finite, or there is none.

    Args:
        training: see `Cell`.
    """
    end = work.judges.end[: sum(len(batch.noise) for batch in work.few)]
    scores = [_score(contender.run, work.few, end) for contender in contenders]
    if not scores:
        return None
    best = contenders[scores.index(min(scores))]
    if not math.isfinite(min(scores)):
        log.warning("%s is finite on no schedule at %d calls", best.solver, at)
        return None
    try:
        done = run_all(best.run, work.batches, TIMINGS)
    except FloatingPointError as error:  # finite on the tuning samples, yet not on all
        log.warning("%s at %d calls: %s", best.solver, at, error)
        return None
    cell = Cell(best.solver, group, False, at, done.calls, done.evaluations, best.steps, best.schedule,
                seconds=done.seconds, training=training, **work.judges.measures(done.end))  # fmt: skip
    log.info("%-28s %2d calls: RMSE %.4f on %s", best.solver, done.calls, cell.rmse, best.schedule)
    return cell


def _score(run: Run, few: Sequence[Batch], end: Tensor) -> float:
    try:
        error = rmse(run_all(run, few).end, end)
    except FloatingPointError:
        return math.inf
    return error if math.isfinite(error) else math.inf
