"""Where a policy starts: at the given table, or at another of as many calls that earns more."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..denoisers.rows import samples_together
from ..distill.config import DistillConfig
from ..distill.growth import grown
from ..distill.initial import initial_table
from ..distill.starts import HANDMADE_STARTS
from ..runs.processes import Workers
from ..solvers.table import Table
from .config import RefineConfig
from .reward import normalisation
from .task import Task

log = logging.getLogger("epd")
SAMPLES, BLOCK = 512, 64  # that starts are compared on, and of these together


def start_tables(task: Task, base: Table, config: RefineConfig) -> tuple[Table, ...]:
    """The tables that a policy may be around: the given one and, where the best is asked for, the task's other ones
    and hand-made multistep solvers of as many calls and points, all of whose weights are free.

    Raises:
        ValueError: see `own_starts`.
    """
    own = own_starts(task, base, config)
    if config.start == "given" or base.depth < 2:
        return own
    like = DistillConfig(family="dense", calls=base.depth, points=base.num_parallel)
    return *own, *(initial_table(like, task.model, start) for start in HANDMADE_STARTS[task.model.path])


def own_starts(task: Task, base: Table, config: RefineConfig) -> tuple[Table, ...]:
    """The given table and, where the best is asked for, the task's other ones, grown to as many calls.

    Raises:
        ValueError: for other ones that nobody asks for, or that make more calls or evaluations than the given one.
    """
    if config.start == "given" and task.starts:
        raise ValueError(f"{len(task.starts)} other tables to start at with start = 'given': take start = 'best'")
    return base, *(_as_deep(table, base) for table in task.starts)


def _as_deep(table: Table, base: Table) -> Table:
    deep = table if table.depth >= base.depth else grown(table, base.depth)
    if deep.depth > base.depth or deep.nfe > base.nfe:
        raise ValueError(
            f"the table {table.digest[:8]} to start at makes {deep.depth} calls, {deep.nfe} evaluations, the given one "
            f"{base.depth}, {base.nfe}: give one that makes no more"
        )
    return deep


def best_start(task: Task, tables: tuple[Table, ...], config: RefineConfig, workers: Workers) -> int:
    """The place of the table that earns most on training samples, with the same noise for all; the first is the given.

    What is nearest to the converged pictures need not show most of what is asked for, and a policy climbs from where
    it is.
    """
    if len(tables) == 1:
        return 0
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 - 1)  # none of the updates' own
    draws = task.draw(SAMPLES, 1, False, generator)
    together = samples_together(task.model.shape, BLOCK)
    firsts = range(0, SAMPLES, together)

    def part(i: int) -> Tensor:
        rows = slice(firsts[i], firsts[i] + together)
        out = torch.zeros(len(tables), len(task.scores), SAMPLES, dtype=torch.float64)
        for row, table in zip(out, tables, strict=True):
            rollout = task.roll_out(table.coefficients(), draws[rows], getattr(torch, config.dtype), check=False)
            if bool(rollout.states.isfinite().all()):
                for scores, score in zip(row, task.scores.values(), strict=True):
                    scores[rows] = score(rollout)
            else:
                row[:, rows] = -torch.inf
        return out.flatten()

    summed = workers.mean(len(firsts), len(tables) * len(task.scores) * SAMPLES, part) * len(firsts)
    raw = summed.reshape(len(tables), -1, SAMPLES)
    scales = {name: normalisation(row) for name, row in zip(task.scores, raw[0], strict=True)}
    earned = [float(task.combined(dict(zip(task.scores, rows, strict=True)), scales).mean()) for rows in raw]
    best = max(range(len(tables)), key=lambda i: earned[i])
    if best and workers.rank == 0:
        log.info(
            "on %d training samples %s earns %.3g standard deviations more than the given table: the policy starts "
            "there", SAMPLES, _named(tables[best], best, task), earned[best] - earned[0],
        )  # fmt: skip
    return best


def _named(table: Table, place: int, task: Task) -> str:
    """A start, for people."""
    if place <= len(task.starts):
        return f"the table {task.starts[place - 1].digest[:8]}"
    return f"a hand-made solver on the {table.provenance.schedule} schedule"
