"""The README's benchmark: every family of learned solvers on the embedded models, beside every hand-made solver.

    python -m epd.experiments.bench_learned           # what is missing, seed 0 of everything first
    python -m epd.experiments.bench_learned --print   # the README's tables of what is there
    python -m epd.experiments.bench_learned --draw    # docs/pareto_MODEL.png, likewise
    python -m epd.experiments.bench_learned --only digits-exact,dense-1,,0 digits,s4s   # MODEL,FAMILY,CALLS,SEED
    OMP_NUM_THREADS=1 python -m epd.experiments.bench_learned --only digits-exact       # beside another with digits

A cell is one training run, measured on fresh noise beside the hand-made solvers at as many calls and at as many
evaluations; the table of 5 calls is grown from that of 3, that of 7 from that of 5, as in `epd distill`. It lies in
results/learned/MODEL/FAMILY-CALLS-SEED.json with its table, and is written once the table is learned and again once it
is measured; the same command goes on with what is missing, or was made with other settings. Tables are chosen on the
validation noise alone; each hand-made method is in its best variant and on its best schedule, column by column, both
chosen on the first of the samples that it is measured on, which is in its favour.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..denoisers.protocol import Model
from ..distill.plan import Plan, make_plan
from ..distill.teacher import POOL_SEEDS, VALIDATION_SEEDS, Teacher
from ..distill.train import distill
from ..evaluation.compare import compare
from ..evaluation.comparison import Cell
from ..evaluation.judges import judges_of
from ..evaluation.pareto import costs, pareto_plot
from ..formats.files import write_atomically
from ..runs.environment import environment
from ..solvers.table import Table
from ..solvers.table_json import dumps, loads
from . import learned_results
from .cells_command import cells_command
from .learned_cells import SUBJECTS, Job, Subject, Training, jobs

log = logging.getLogger("epd")


def run(job: Job, results: Path, work: Path) -> None:
    """Learns and measures a cell as far as that is not done yet, and hand-made solvers beside it."""
    table = measured(job, results, work)
    for at in sorted({table.depth, table.nfe}):
        measure_handmade(job.of, at, results / job.subject / f"handmade-{at}.json", work)


def measured(job: Training, results: Path, work: Path) -> Table:
    """The table of a cell, learned and measured as far as that is not done yet."""
    content, judged = cell_of(job, results, work), job.of.judged()
    table = table_in(content)
    if content.get("judged") != judged:
        began = time.process_time()
        cells = compared(job.of, {job.family: table}, table.depth, work, solvers=())
        cost = {"measuring_cpu_seconds": cpu_since(began)}
        write(job.path(results), {**content, "judged": judged, "cell": asdict(cells[0]), **cost})
    return table


def cpu_since(began: float) -> float:
    """Seconds of the processor since then, which other work on the machine does not lengthen much."""
    return round(time.process_time() - began, 1)


def cell_of(job: Training, results: Path, work: Path) -> dict[str, Any]:
    """A cell with its table, which is learned where it is missing or was learned otherwise; those of fewer points and
    calls, which are widened and grown into starts of it, before it.
    """
    narrower, fewer = (
        None if other is None else table_in(cell_of(other, results, work)) for other in (job.narrower(), job.fewer())
    )
    settings = {**job.settings(), "grown_from": None if fewer is None else fewer.digest}
    settings |= {} if narrower is None else {"widened_from": narrower.digest}
    smaller = [table for table in (narrower, fewer) if table is not None]
    content = read(job.path(results))
    if content.get("settings") != settings:
        named = {"subject": job.subject, "family": job.family, "calls": job.calls, "seed": job.seed}
        content = {**named, "settings": settings, **learned(job, smaller, results, work)}
        write(job.path(results), content)
    return content


def table_in(content: Mapping[str, Any]) -> Table:
    """The table of a cell."""
    return loads(json.dumps(content["table"]))


def learned(job: Training, smaller: Sequence[Table], results: Path, work: Path) -> dict[str, Any]:
    """A training run: its table, and the seconds that it took beside its teacher's, which all runs of a model share."""
    model = job.of.load()
    began, cpu = time.perf_counter(), time.process_time()
    plan = make_plan(model, job.config(), smaller=smaller)
    planned, cpu_planned = time.perf_counter() - began, time.process_time() - cpu
    teacher = job.teacher(results)
    if teacher is not None:
        solve_teacher(model, plan, teacher, work)
    began, cpu = time.perf_counter(), time.process_time()
    *_, last = distill(model, plan, cache=work)
    seconds, table = planned + time.perf_counter() - began, last.table
    log.info("learned in %.0f s: RMSE %.4f on validation noise", seconds, last.state.best_rmse)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": cpu_since(cpu - cpu_planned),
        "validation_rmse": last.state.best_rmse,
        "digest": table.digest,
        "table": json.loads(dumps(table)),
        "environment": environment(),
    }


def solve_teacher(model: Model, plan: Plan, path: Path, work: Path) -> None:
    """Makes sure that the teacher's trajectories are there; the first time, its seconds are those of all of them."""
    teacher = Teacher(model, plan.config, torch.tensor(plan.tables[0].sigmas), work, ends=True)
    identity = {"key": teacher.key(), "trajectories": plan.config.pool + plan.config.validation}
    timed = any(read(path).get(key) != value for key, value in identity.items())
    if timed:
        shutil.rmtree(work / "teachers" / teacher.key(), ignore_errors=True)  # what a stopped one has left
    began = time.perf_counter()
    for first, count in ((POOL_SEEDS, plan.config.pool), (VALIDATION_SEEDS, plan.config.validation)):
        teacher.prepare(first, count)
    if timed:
        seconds = round(time.perf_counter() - began, 1)
        write(path, {**identity, "seconds": seconds, "environment": environment()})


def measure_handmade(subject: Subject, at: int, path: Path, work: Path, others: Sequence[str] = ()) -> None:
    """Measures every hand-made method at so many calls, in the variant that is best on the samples that its schedule is
    chosen on, if that is not done yet.

    Args:
        others: peers that are measured, too.
    """

    def best() -> list[str]:
        few = compared(replace(subject, samples=subject.tuning), {}, at, work, ("hand-made",))
        tried = sorted(few, key=lambda c: -c.rmse)
        return [*{cell.group: cell.solver for cell in tried}.values(), *others]

    measure_solvers(subject, at, path, work, best)


def measure_solvers(subject: Subject, at: int, path: Path, work: Path, names: Callable[[], Sequence[str]]) -> None:
    """Measures solvers that are not learned here, chosen by `names`, at so many calls, if that is not done yet."""
    if read(path).get("judged") != subject.judged():
        began = time.process_time()
        cells = [asdict(cell) for cell in compared(subject, {}, at, work, names())]
        cost = {"cpu_seconds": cpu_since(began), "environment": environment()}
        write(path, {"at": at, "judged": subject.judged(), "cells": cells, **cost})


def compared(
    subject: Subject, tables: Mapping[str, Table], calls: int, work: Path, solvers: Sequence[str] | None
) -> tuple[Cell, ...]:
    """The cells of a comparison on fresh noise; what was measured of it before lies in `work`."""
    model = subject.load()
    return compare(
        model, tables, [calls], subject.samples, subject.batch, dtype=subject.dtype, **judges_of(subject.model),
        tuning=subject.tuning, tolerance=subject.tolerance, alphas_cumprod=model.alphas_cumprod, solvers=solvers,
        keep=work / "cells",
    ).cells  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """What a cell's file holds, nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content) + "\n").encode())


def drawn(results: Path, docs: Path) -> Iterator[Path]:
    """Writes the plots of the models that have been measured: error against calls and against evaluations."""
    for name in SUBJECTS:
        measured = learned_results.of_model(learned_results.contents(results), name)
        if measured.runs:
            comparison = measured.comparison()
            yield pareto_plot(comparison, costs(comparison)[:2], docs / f"pareto_{name.replace('-', '_')}.png")


def printed(results: Path) -> str:
    """The README's tables of what has been measured."""
    contents = learned_results.contents(results)
    return "\n\n".join(f"{name}\n\n{render(contents)}" for name, render in learned_results.RENDERERS.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing, prints or draws."""
    return cells_command(argv, __doc__, "MODEL,FAMILY,CALLS,SEED", learned_results.FOLDER, jobs, run, printed, drawn)



if __name__ == "__main__":
    raise SystemExit(main())
