"""What `evaluate` measures: tables, and hand-made solvers each on its best schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoisers.protocol import Model
from ..runs.processes import Workers
from ..solvers.table import Table
from ..solvers.walk import Rule
from .compare import compare
from .handmade import HandMade, candidate_schedules, handmade
from .peers import chosen

TUNING = 256  # samples on which a hand-made solver's schedule is chosen


@dataclass(frozen=True, eq=False)
class Rival:
    """A solver that is ready to solve.

    Args:
        calls: sequential calls that were asked for.
        identity: all that its samples depend on, ready for JSON.
    """

    name: str
    learned: bool
    schedule: str
    calls: int
    rule: Rule
    sigmas: Tensor
    identity: dict[str, Any]


def tables_as_rivals(tables: Mapping[str, Table], device: str) -> list[Rival]:
    """Learned solvers at their own depth."""
    out = []
    for name, table in tables.items():
        sigmas, identity = torch.tensor(table.sigmas), {"table": table.digest}  # a copy: tables are read-only
        out.append(Rival(name, True, "learned", table.depth, table.rule(device), sigmas, identity))
    return out


def rivals_of(
    model: Model,
    names: Sequence[str],
    calls: Sequence[int],
    keep: Path,
    workers: Workers,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    conditions: Mapping[str, object] | None = None,
) -> list[Rival]:
    """The hand-made solvers of these names or groups, at each count of calls that they can make.

    Args:
        keep: folder in which the errors on each schedule are kept.
        seed, dtype, conditions: as of `compare`.

    Raises:
        ValueError: for a name that none has, or counts below 1.
    """
    if not names:
        return []
    if not calls or min(calls) < 1:
        raise ValueError(f"calls = {list(calls)}: hand-made solvers need counts of at least 1")
    solvers, _ = chosen(handmade(model.path), (), names)
    candidates = candidate_schedules(model.path, model.sigma_min, model.sigma_max, model.alphas_cumprod)
    # Of two counts that are as many steps of a solver, the smaller one.
    fewest = {(number, solver.steps(at)): at for number, solver in enumerate(solvers) for at in sorted(calls)[::-1]}
    cells = sorted((number, at) for (number, _), at in fewest.items())
    labels = list(candidates)

    def best(_: int) -> Tensor:
        """The number of each cell's schedule, -1 where the solver cannot take a step or is finite on none."""
        found = compare(
            model, {}, calls, TUNING, TUNING, seed, dtype=dtype, solvers=names, tuning=TUNING,
            alphas_cumprod=model.alphas_cumprod, keep=keep / "schedules", conditions=conditions,
        ).cells  # fmt: skip
        by_cell = {(cell.solver, cell.asked): labels.index(cell.schedule) for cell in found}
        return torch.tensor([by_cell.get((solvers[number].name, at), -1) for number, at in cells], dtype=torch.float64)

    # The first process chooses for all: where two schedules are as good, others might choose the other one.
    schedules = workers.mean(1, len(cells), best).int().tolist()
    out = []
    for (number, at), schedule in zip(cells, schedules, strict=True):
        if schedule >= 0:
            solver, label = solvers[number], labels[schedule]
            out.append(_rival(solver, at, label, candidates[label](solver.steps(at))))
    return out


def _rival(solver: HandMade, at: int, schedule: str, sigmas: Tensor) -> Rival:
    identity = {"rule": solver.name, "sigmas": sigmas.tolist()}
    return Rival(solver.name, False, schedule, at, solver.rule(sigmas), sigmas, identity)
