"""The README's study of refinement by rewards on the embedded text-to-image world.

    python -m epd.experiments.bench_refine                                 # what is missing
    python -m epd.experiments.bench_refine --only shapes,,3 shapes,reference   # MODEL,WHAT,CALLS,SEED
    python -m epd.experiments.bench_refine --print                         # the README's tables of what is there
    python -m epd.experiments.bench_refine --draw                          # docs/refine_*.png, likewise

A cell is a solver that is made and measured: the reference of many steps; every hand-made method, in the variant and on
the schedule that are best by `graded` on tuning samples; a distilled table, of one point a call or (-k2) two; that
table refined by `shapes-graded`; or a refinement of the study of sample efficiency, of which the course alone is kept.
All are measured on held-out prompts and the same noise, on which nothing was learned, chosen or tested. Cells lie in
results/refined/MODEL/WHAT-CALLS-SEED.json with their scores sample by sample; the same command goes on with what is
missing, or was made with other settings.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..distill.plan import make_plan
from ..distill.train import distill
from ..rl.refine import refine
from ..rl.run import refined
from ..rl.state import Evaluation
from ..runs.environment import environment
from ..solvers.table import Table
from ..solvers.table_json import dumps
from . import refined_efficiency, refined_results
from .bench_learned import read, solve_teacher, table_in, write
from .cells_command import cells_command
from .refined_cells import EFFICIENCY, SUBJECTS, Job, jobs
from .refined_pictures import draw_efficiency, draw_samples
from .refined_scores import judge_of

log = logging.getLogger("epd")


def run(job: Job, results: Path, work: Path) -> None:
    """Makes and measures a cell as far as that is not done yet."""
    subject = SUBJECTS[job.subject]
    if job.what in EFFICIENCY:
        cell_of(job, results, work)
        return
    content, judged = cell_of(job, results, work), subject.judged()
    if content.get("judged") == judged:
        return
    judge = judge_of(job.subject)
    if job.what == "handmade":
        measured: dict[str, Any] = {"solvers": judge.handmade(job.calls)}
    elif job.what == "reference":
        measured = {"scores": judge.measured(*judge.reference())}
    else:
        table = table_in(content)
        measured = {"scores": judge.measured(table.rule(), torch.tensor(table.sigmas))}
    write(job.path(results), {**content, "judged": judged, **measured, "environment": environment()})


def cell_of(job: Job, results: Path, work: Path) -> dict[str, Any]:
    """A cell, with its table where it has one, which is learned where it is missing or was learned otherwise; a refined
    one's base before it.
    """
    subject = SUBJECTS[job.subject]
    if job.what in ("reference", "handmade"):
        settings: dict[str, Any] = {"reference": [*subject.reference]}
        settings = settings if job.what == "reference" else {"tuning": subject.tuning}
        content = read(job.path(results))
        return content if content.get("settings") == settings else {**asdict(job), "settings": settings}
    if job.what.startswith("distilled"):
        settings, make = job.distill_settings(), lambda: distilled(job, results, work)
    else:
        base = cell_of(job.base(), results, work)
        config = job.refining().model_dump(mode="json")
        starts = tuple(table_in(cell_of(fewer, results, work)) for fewer in job.fewer())
        grown = {"starts": [table.digest for table in starts]} if subject.grow else {}
        settings = {**config, "guidance": subject.guidance, "base": base["digest"], **grown}
        make = lambda: refining(job, base, starts)  # noqa: E731 - the twin of the one above
    content = read(job.path(results))
    if content.get("settings") != settings:
        content = {**asdict(job), "settings": settings, **make(), "environment": environment()}
        write(job.path(results), content)
    return content


def distilled(job: Job, results: Path, work: Path) -> dict[str, Any]:
    """A distillation: its table, and the seconds that it took beside its teacher's, which all of a model share."""
    model = SUBJECTS[job.subject].training_model()
    plan = make_plan(model, job.distilling())
    solve_teacher(model, plan, results / job.subject / "teacher.json", work)
    wall, cpu = time.perf_counter(), time.process_time()
    *_, last = distill(model, plan, cache=work)
    seconds = _seconds(wall, cpu)
    log.info("distilled in %.0f s: RMSE %.4f on validation noise", seconds["seconds"], last.state.best_rmse)
    return {**seconds, "digest": last.table.digest, "table": json.loads(dumps(last.table))}


def refining(job: Job, base: Mapping[str, Any], starts: tuple[Table, ...]) -> dict[str, Any]:
    """A refinement of a cell's table: the course of its tests, its seconds, and its table where that is measured."""
    given, config, task = table_in(base), job.refining(), replace(SUBJECTS[job.subject].task(), starts=starts)
    wall, cpu = time.perf_counter(), time.process_time()
    course, last = [], None
    for last in refine(task, given, config):
        if last.evaluation is not None:
            course.append(_tested(last.iteration * config.samples, last.evaluation))
            log.info("update %d: %s", last.iteration, {k: round(v, 4) for k, v in course[-1]["gain"].items()})
    assert last is not None, "there is an update at least"
    out = {**_seconds(wall, cpu), "course": course, "evaluations": last.total * config.samples * given.nfe}
    if job.what in EFFICIENCY:
        return out
    table, passed = refined(task, given, config, last.state), last.state.passed
    found = {"passed": None if passed is None else asdict(passed), "digest": table.digest}
    return {**out, **found, "table": json.loads(dumps(table))}


def _tested(rollouts: int, test: Evaluation) -> dict[str, Any]:
    """The mean table less the given one on the same held-out samples, in every score."""
    gain = {name: value - test.given[name] for name, value in test.means.items()}
    interval = {"verdict": test.verdict.value, "count": test.interval.count}
    return {"rollouts": rollouts, "gain": gain, "given": dict(test.given), **interval}


def _seconds(wall: float, cpu: float) -> dict[str, float]:
    """Since then, and of the processor, which other work on the machine does not lengthen much."""
    return {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}


def drawn(results: Path, docs: Path) -> Iterator[Path]:
    """Writes the pictures of what has been measured."""
    files = refined_results.contents(results)
    for name in SUBJECTS:
        courses = refined_efficiency.courses(files, name)
        if courses:
            yield draw_efficiency(courses, docs / "refine_efficiency.png")
    shown = refined_results.shown(files)
    if shown is not None:
        yield draw_samples(judge_of(shown.subject), shown, docs / "refine_samples.png")


def printed(results: Path) -> str:
    """The README's tables of what has been measured."""
    files = refined_results.contents(results)
    return "\n\n".join(f"{name}\n\n{render(files)}" for name, render in refined_results.RENDERERS.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing, prints or draws."""
    return cells_command(argv, __doc__, "MODEL,WHAT,CALLS,SEED", refined_results.FOLDER, jobs, run, printed, drawn)



if __name__ == "__main__":
    raise SystemExit(main())
