"""Published solvers that are not one step after another on a usual schedule: learned ones, and parallel ones.

Each is measured as hand-made solvers are, the best of its settings on the tuning samples, and says what learning it has
cost. All from their papers' formulas.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..denoisers.protocol import Denoiser, Model, Path
from ..distill.config import DistillConfig
from ..distill.cost import estimate
from ..distill.gits import FINE, LATER, Gits, gits_of
from ..distill.pas import Truth, pas_of, truth_of
from ..distill.plan import make_plan
from ..distill.train import distill
from ..formats.texts import perhaps
from ..solvers.picard import picard
from ..solvers.registry import Ends
from .batches import Counted, CountingRows, ruled
from .cells import Contender, Work, best_cell, table_cell
from .comparison import Cell
from .handmade import HandMade, Schedule

log = logging.getLogger("epd")
# Of ParaDiGMS: steps of the fine grid and window, in sequential calls and in steps, and tolerance.
PICARD = ((1.5, 1 / 2, 0.05), (2.0, 1 / 2, 0.2), (3.0, 1 / 2, 0.2), (4.0, 1 / 3, 0.2))
CORRECTED = ("Euler", "iPNDM-2", "iPNDM-3", "iPNDM-4")  # of which PAS corrects the slopes
# LD3's network is told levels of its own; see `distill/families.py` for what else is the papers' and what is not.
FAMILIES: dict[str, dict[str, object]] = {
    "LD3": {"family": "ld3", "learn": ("sigmas", "anchor_scale")},
    "LD3 relaxed": {"family": "ld3", "learn": ("sigmas", "anchor_scale"), "relax": 0.1},
    "S4S": {"family": "s4s"},
    "AMED": {"family": "amed"},
}


@dataclass(frozen=True)
class Peer:
    """A published solver.

    Args:
        name: its row in the tables.
        method: what all rows of its method are called.
        cell: the cell at so many sequential calls; None where it has none.
        usual: measured where no names are given, as it costs little.
        one_row: evaluates one row a call, so that it can be held against others at equal evaluations.
    """

    name: str
    method: str
    cell: Callable[[Work, int], Cell | None]
    usual: bool = False
    one_row: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """What it can be asked for by."""
        return self.name, self.method, "peers"


def peers(solvers: Sequence[HandMade]) -> list[Peer]:
    """Every peer of a path.

    Args:
        solvers: the hand-made ones of the path, which GITS gives a schedule.
    """
    found = functools.cache(_gits)  # once for all counts, and not where all cells are kept
    groups = dict.fromkeys(solver.group for solver in solvers if solver.step_calls == 1)
    out = [
        Peer(f"GITS + {group}", "GITS", partial(_gits_cell, found, [s for s in solvers if s.group == group]), True)
        for group in groups
    ]
    truths = functools.cache(_truth)
    for group in dict.fromkeys(solver.group for solver in solvers if solver.name in CORRECTED):
        corrected = [s for s in solvers if s.name in CORRECTED and s.group == group]
        out.append(Peer(f"PAS + {group}", "PAS", partial(_pas_cell, truths, corrected)))
    out.append(Peer("ParaDiGMS", "ParaDiGMS", _picard_cell, one_row=False))
    return [*out, *(Peer(name, name.split()[0], partial(_trained_cell, name)) for name in FAMILIES)]


Solver = TypeVar("Solver", HandMade, Peer)


def chosen(
    solvers: Sequence[HandMade], others: Sequence[Peer], names: Sequence[str] | None
) -> tuple[list[HandMade], list[Peer]]:
    """The solvers of these names or groups; all hand-made ones and the usual peers where there are no names.

    Raises:
        ValueError: for a name that none has.
    """
    if names is None:
        return [*solvers], [peer for peer in others if peer.usual]
    known = [solver.names for solver in (*solvers, *others)]
    missing = [name for name in names if not any(name in own for own in known)]
    if missing:
        groups = dict.fromkeys([*(solver.group for solver in solvers), *(peer.method for peer in others)])
        hint = perhaps(missing[0], [name for own in known for name in own])
        every = "'hand-made' or 'peers'" if others else "'hand-made'"
        raise ValueError(f"no solver is named {missing[0]!r}: {hint}groups are {', '.join(groups)}; all are {every}")
    return _named(solvers, names), _named(others, names)


def _named(solvers: Sequence[Solver], names: Sequence[str]) -> list[Solver]:
    return [solver for solver in solvers if set(solver.names) & set(names)]


def _gits(model: Model, dtype: torch.dtype) -> Gits:
    found = gits_of(model, Ends.of(model), dtype)
    log.info("GITS: %d evaluations of a teacher along %d noise levels", found.evaluations, len(found.levels))
    return found


def _gits_cell(
    found: Callable[[Model, torch.dtype], Gits], solvers: Sequence[HandMade], work: Work, at: int
) -> Cell | None:
    """A group of hand-made solvers on the schedules of the least error along a teacher's trajectories."""
    suited = [solver for solver in solvers if 1 <= solver.steps(at) <= FINE]
    if not suited:
        return None
    gits = found(work.model, work.dtype)
    contenders = []
    for solver in suited:
        # Weights that lead to the same schedule are one contender.
        schedules = {tuple(gits.schedule(solver.steps(at), later).tolist()): later for later in LATER[::-1]}
        for sigmas, later in schedules.items():
            contender = Contender.of(solver, f"GITS {later:g}", torch.tensor(sigmas, dtype=torch.float64))
            contenders.append(replace(contender, solver=f"GITS + {solver.name}"))
    group = f"GITS + {suited[0].group}"
    return best_cell(group, at, contenders, work, gits.evaluations)


def _truth(model: Model, schedule: Schedule, steps: int, dtype: torch.dtype) -> Truth:
    return truth_of(model, schedule(steps), dtype)


def _pas_cell(
    truths: Callable[[Model, Schedule, int, torch.dtype], Truth], solvers: Sequence[HandMade], work: Work, at: int
) -> Cell | None:
    """A group of hand-made solvers with learned coordinates of their slopes, on the schedule that suits them best."""
    contenders, evaluations = [], 0
    for name, schedule in work.candidates.items():
        truth = truths(work.model, schedule, at, work.dtype)
        evaluations += truth.evaluations
        for solver in solvers:
            rule = solver.rule(truth.sigmas)
            try:
                learned = pas_of(work.model, rule, truth)
            except FloatingPointError as error:
                log.info("PAS + %s on %s has no coordinates: %s", solver.name, name, error)
                continue
            evaluations += learned.evaluations
            run = ruled(learned.rule(rule), truth.sigmas)
            contenders.append(Contender(f"PAS + {solver.name}", f"{name}, {learned.numbers} numbers", at, run))
    return best_cell(f"PAS + {solvers[0].group}", at, contenders, work, evaluations)


def _picard_cell(work: Work, at: int) -> Cell | None:
    """ParaDiGMS with the fine grid, window and tolerance that suit so many calls, after which it stops."""
    contenders = []
    for name, make in work.candidates.items():
        for share, part, tolerance in PICARD:
            steps = max(1, round(share * at))
            window = int(part * steps) + 1
            run = partial(_picard, make(steps), window, tolerance, at, work.model.path)
            label = f"{name}, window {window}, tolerance {tolerance:g}"
            contenders.append(Contender("ParaDiGMS", label, steps, run))
    return best_cell("ParaDiGMS", at, contenders, work)


def _picard(
    sigmas: Tensor, window: int, tolerance: float, most: int, path: Path, denoiser: Denoiser, noise: Tensor
) -> Counted:
    counting = CountingRows(denoiser)
    end = picard(counting, noise, sigmas, window, tolerance, most, path)
    if not bool(end.isfinite().all()):
        raise FloatingPointError("the last state of ParaDiGMS is not finite")
    return end, counting.calls, counting.rows // len(noise)


def _trained_cell(name: str, work: Work, at: int) -> Cell | None:
    """The table of a published family, learned here as `epd distill` does by default."""
    try:
        plan = make_plan(work.model, _config(name, at))
    except ValueError as error:
        log.info("%s has no table of %d calls: %s", name, at, error)
        return None
    cost = estimate(work.model, plan)
    with torch.enable_grad():
        *_, last = distill(work.model, plan)
    cell = table_cell(name, name, last.table, work)
    return replace(cell, learned=False, training=cost.teacher_evaluations + cost.training_evaluations)


def _config(name: str, calls: int) -> DistillConfig:
    return DistillConfig.model_validate({**FAMILIES[name], "calls": calls})
