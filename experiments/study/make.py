"""How the study makes a cell: what is there already is kept."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...distill.plan import make_plan
from ...runs.environment import environment
from ..bench_learned import (
    cell_of,
    compared,
    cpu_since,
    measure_handmade,
    measure_solvers,
    measured,
    read,
    solve_teacher,
    table_in,
    write,
)
from .cells import ALSO_FOUND, CALLS, FOUND, HAND, OURS, WORLDS, Begin, Cell, Run, Transfer, Untrained


def make(cell: Cell, results: Path, work: Path) -> None:
    """Makes a cell as far as that is not done yet."""
    match cell:
        case Run():
            measured(cell, results, work)
        case Begin():
            begin(cell, results, work)
        case Untrained(family=family) if family == HAND:
            others = FOUND.get(cell.subject, ALSO_FOUND)
            measure_handmade(WORLDS[cell.subject], cell.calls, cell.path(results), work, others)
        case Untrained(family=peer):
            measure_solvers(WORLDS[cell.subject], cell.calls, cell.path(results), work, lambda: (peer,))
        case Transfer():
            transfer(cell, results, work)


def begin(cell: Begin, results: Path, work: Path) -> None:
    """Solves what the other cells of a world share."""
    world, path, began = WORLDS[cell.subject], cell.path(results), time.process_time()
    model, first = world.load(), Run(cell.subject, next(iter(OURS)), CALLS[0], cell.seed)
    solve_teacher(model, make_plan(model, first.config()), path, work)
    compared(world, {}, 1, work, ())
    content = read(path)
    if "cpu_seconds" not in content:
        write(path, {**content, "cpu_seconds": cpu_since(began)})


def transfer(cell: Transfer, results: Path, work: Path) -> None:
    """Measures a table of another world, which is learned where it is missing."""
    world, source = WORLDS[cell.target], cell_of(cell.run(), results, work)
    settings: dict[str, Any] = {"digest": source["digest"], "judged": world.judged()}
    if read(cell.path(results)).get("settings") != settings:
        began, table = time.process_time(), table_in(source)
        one = compared(world, {cell.family: table}, table.depth, work, ())[0]
        cost = {"cpu_seconds": cpu_since(began), "environment": environment()}
        write(cell.path(results), {**asdict(cell), "settings": settings, "cell": asdict(one), **cost})
