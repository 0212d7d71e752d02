"""Tables that are learned with an accelerator on, beside the same accelerators under other solvers, on `shapes-32`.

    python -m epd.experiments.bench_together                        # what is missing
    python -m epd.experiments.bench_together --only shapes-32,ras   # MODEL,KIND,CALLS,SEED
    python -m epd.experiments.bench_together --print                # the page's tables of what is there

A cell is a solver, made and measured on fresh samples: how far its end points are from the converged ones (RMSE), and
its cost, in forwards of one row. Tables are learned by short runs, equal for all, with the accelerator on (`KIND`) or
get it afterwards (`KIND-later`); hand-made ones and inner-loop feedback go along one log-SNR grid. `times` are seconds
of all of them, one after the other in one run, in those of a plain call of as many samples. Cells lie in
results/together/shapes-32; the same command goes on with what is missing or was made with other settings.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..accelerators.accelerate import accelerate
from ..accelerators.names import parse
from ..denoisers.networks import NetworkDenoiser
from ..denoisers.noise import unit_noise
from ..denoisers.rows import limit_rows
from ..denoisers.shapes_32 import shapes_32
from ..distill.config import DistillConfig
from ..distill.feedback_config import FeedbackConfig
from ..distill.feedback_run import RESULT, distill_feedback
from ..distill.plan import make_plan
from ..distill.points import settled
from ..distill.train import distill
from ..runs.environment import environment
from ..solvers.solve import solve
from ..solvers.table_json import dumps
from ..solvers.walk import Rule
from . import learned_results, together_results
from .bench_accelerators import RULES, Judge, accelerated
from .bench_learned import read, table_in, write
from .cells_command import cells_command, chosen

MODEL = "shapes-32"
SEEDS, REFERENCE = range(100_000, 100_256), 60  # fresh samples; steps of DPM-Solver-2 to their converged end points
TIMED, REPEATS = 16, 5  # samples solved together where seconds are measured; how often
# Short runs, equal for all.
TRAINING = {"pool": 512, "validation": 128, "batch": 16, "screening": 6, "iterations": 100,
            "validate_every": 50, "teacher_tolerance": 1e-2}  # fmt: skip
FORWARD = {**TRAINING, "optimizer": "gauss-newton", "batch": 32, "screening": 1, "iterations": 4, "validate_every": 1,
           "accumulate": 1}  # fmt: skip
OPTIMISERS = {"": TRAINING, "-gauss-newton": FORWARD}
HALF, REGIONS, FIRST = "ras:ratio=0.5,where=fan", "ras:ratio=0.5,warmup=2,gap=4", "first_block:threshold=0.5"
# What is learned, and the accelerator; named in together_results. Only two-call tables ask for a fan by itself.
DENSE, TWO_CALL = {"family": "dense", "points": 1}, {"family": "two-call", "points": 2}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": (DENSE, ""), "two-call": (TWO_CALL, ""), "ras": (DENSE, REGIONS), "ras-fan": (TWO_CALL, HALF),
    "first-block": (DENSE, FIRST),
}  # fmt: skip
TRAINING_SEEDS = range(3)
# Calls of each kind, which cost as much as six or seven plain ones.
EQUAL = {"plain": 6, "ras": 9, "ras-fan": 6, "first-block": 9}
ALSO = [("plain", 5), ("plain", 7), ("plain", 9), ("two-call", 6)]  # seed 0 alone
HANDMADE = [
    *((solver, steps, "") for solver in ("euler", "ipndm2", "ipndm3") for steps in (6, 9)), ("dpm2", 3, ""),
    ("dpm2", 4, ""), ("dpm2", 4, HALF), ("dpm2", 4, f"{HALF},score=random"),
    *((solver, 9, accelerator) for solver in ("euler", "ipndm2") for accelerator in (REGIONS, FIRST)),
    *((solver, 9, f"{REGIONS},score=random") for solver in ("euler", "ipndm2")),
]  # fmt: skip
# Inner-loop feedback for Euler's steps, learned in some minutes.
LOOP = {"steps": 4, "begin": 2, "count": 3, "schedule": "logsnr", "iterations": 200, "batch": 16, "pool": 256,
        "validation": 64, "validate_every": 50, "lr": 2e-3, "scale_lr": 3e-2, "teacher": "dpmpp",
        "teacher_multiplier": 16}  # fmt: skip
LATER, HAND, FEEDBACK, TIMES = "-later", "handmade", "feedback", "times"
log = logging.getLogger("epd")


@dataclass(frozen=True)
class Job:
    """One cell.

    Args:
        kind: of KINDS, with an ending of OPTIMISERS or `-later`; HAND, FEEDBACK or TIMES.
        calls: sequential; of hand-made solvers their steps.
        seed: of training.
        solver, accelerator: of hand-made ones; of feedback the solver alone.
    """

    subject: str
    kind: str
    calls: int = 0
    seed: int = 0
    solver: str = ""
    accelerator: str = ""

    @property
    def base(self) -> str:
        """The kind without its ending."""
        return self.kind.removesuffix(LATER).removesuffix("-gauss-newton")

    def accelerated(self, work: Path) -> str:
        """The accelerator at work when it is measured; feedback is what was learned into this folder."""
        if self.kind == FEEDBACK:
            return f"ilf:module={work / FEEDBACK / RESULT}"
        return self.accelerator if self.kind == HAND else KINDS[self.base][1]

    def config(self) -> DistillConfig:
        """Of its training run."""
        how = OPTIMISERS[self.kind.removeprefix(self.base).removesuffix(LATER)]
        own = {**KINDS[self.base][0], "calls": self.calls, "seed": self.seed}
        return DistillConfig.model_validate({**how, **own})

    def path(self, results: Path) -> Path:
        """The cell's file in the folder of all results."""
        if self.kind == TIMES:
            return results / self.subject / "times.json"
        of = f"{self.solver}-{self.accelerator or 'plain'}" if self.kind == HAND else str(self.seed)
        return results / self.subject / f"{self.kind}-{self.calls}-{of.translate(str.maketrans(':=,.', '----'))}.json"


def jobs(only: Sequence[str] = ()) -> list[Job]:
    """The cells that fit one of the filters.

    Raises:
        ValueError: for a filter that no cell fits.
    """
    every = [Job(MODEL, HAND, steps, 0, solver, accelerator) for solver, steps, accelerator in HANDMADE]
    for seed in TRAINING_SEEDS:
        every += [Job(MODEL, kind, calls, seed) for kind, calls in EQUAL.items()]
        if not seed:
            every += [Job(MODEL, kind, calls) for kind, calls in ALSO]
            every += [Job(MODEL, kind + LATER, calls) for kind, calls in EQUAL.items() if KINDS[kind][1]]
    every += [Job(MODEL, f"{k}-gauss-newton", calls, s) for s in TRAINING_SEEDS for k, calls in EQUAL.items()]
    every += [Job(MODEL, FEEDBACK, LOOP["steps"], 0, "euler"), Job(MODEL, TIMES)]
    return chosen(every, only, "MODEL,KIND,CALLS,SEED")


@functools.cache
def judge(work: Path) -> Judge:
    """Of all cells of this process; its converged end points, which take minutes, are kept."""
    work.mkdir(parents=True, exist_ok=True)
    return Judge(SEEDS, REFERENCE, shapes_32(), work / f"ends-{SEEDS.start}-{len(SEEDS)}-{REFERENCE}.safetensors")


def run(job: Job, results: Path, work: Path) -> None:
    """Makes and measures a cell as far as that is not done yet."""
    path, judged = job.path(results), {"seeds": [SEEDS.start, len(SEEDS)], "reference": REFERENCE}
    if job.kind == TIMES:
        timed(path, results, work)
        return
    if job.kind == FEEDBACK:
        fed(job, path, judged, work)
        return
    content = cell_of(job, results, work)
    key = {**judged, "digest": content.get("digest", "")}
    if content.get("judged") != key:
        found = judge(work).of(*method(job, content, work), job.accelerated(work))
        log.info("RMSE %.4f at cost %.2f", together_results.rmse(found), found["cost"])
        at_work = {"accelerated": job.accelerated(work)}
        write(path, {**content, **at_work, **found, "judged": key, "environment": environment()})


def fed(job: Job, path: Path, judged: dict[str, Any], work: Path) -> None:
    """Euler's steps with feedback, which is learned first."""
    config = FeedbackConfig.model_validate(LOOP)
    settings = config.model_dump(mode="json")
    if read(path).get("judged") == judged and read(path).get("settings") == settings:
        return
    cpu = time.process_time()
    distill_feedback(shapes_32(), config, work / FEEDBACK, resume=True)
    seconds = round(time.process_time() - cpu, 1)
    found = judge(work).of(*method(job, {}, work), job.accelerated(work))
    log.info("RMSE %.4f at cost %.2f", together_results.rmse(found), found["cost"])
    content = {**asdict(job), "accelerated": "ilf", "settings": settings, "cpu_seconds": seconds}
    write(path, {**content, **found, "judged": judged, "environment": environment()})


def cell_of(job: Job, results: Path, work: Path) -> dict[str, Any]:
    """A cell, with its table where it has one, which is learned where it is missing or was learned otherwise."""
    content = read(job.path(results))
    if job.kind == HAND:
        return content or asdict(job)
    if job.kind.endswith(LATER):  # of the table that was learned without
        without = Job(MODEL, "plain" if KINDS[job.base][0] == DENSE else "two-call", job.calls)
        found = cell_of(without, results, work)
        return {**content, **asdict(job), **{name: found[name] for name in ("digest", "table")}}
    model = shapes_32()
    config = settled(limit_rows(model), job.config()).resolved(math.prod(model.shape))
    settings = {**config.model_dump(mode="json"), "accelerator": job.accelerated(work)}
    if content.get("settings") != settings:
        content = {**asdict(job), "settings": settings, **learned(job, model, work), "environment": environment()}
        write(job.path(results), content)
    return content


def learned(job: Job, model: NetworkDenoiser, work: Path) -> dict[str, Any]:
    """A training run with the accelerator on: its table, and what it took beside the teacher's, which all share."""
    accelerator = job.accelerated(work)
    accelerate(model, *([parse(accelerator)] if accelerator else []))
    limited = limit_rows(model)
    plan, cpu = make_plan(limited, job.config()), time.process_time()
    *_, last = distill(limited, plan, cache=work)
    seconds = round(time.process_time() - cpu, 1)
    log.info("learned in %.0f s: RMSE %.4f on validation noise", seconds, last.state.best_rmse)
    return {"cpu_seconds": seconds, "digest": last.table.digest, "table": json.loads(dumps(last.table))}


def method(job: Job, content: dict[str, Any], work: Path) -> tuple[Rule, Tensor]:
    """The rule and the noise levels of a cell."""
    if job.kind in (HAND, FEEDBACK):
        return RULES[job.solver](), judge(work).grid(job.calls)
    table = table_in(content)
    return table.rule(), torch.tensor(table.sigmas)


def timed(path: Path, results: Path, work: Path) -> None:
    """Medians of the seconds of every measured solver of seed 0, in plain calls of as many samples, one after the other
    and all of them several times.
    """
    every = [job for job in jobs([f"{MODEL},,,0"]) if job.kind != TIMES and job.path(results).exists()]
    if not (work / FEEDBACK / RESULT).exists():
        every = [job for job in every if job.kind != FEEDBACK]
    names = [job.path(results).relative_to(results).as_posix() for job in every]
    if read(path).get("names") == names:
        return
    model, seeds = judge(work).model, range(TIMED)
    denoiser, noise = model.for_seeds(seeds), unit_noise(seeds, model.shape)
    methods = [(*method(job, read(job.path(results)), work), job.accelerated(work)) for job in every]
    call = lambda: model.for_seeds(seeds)(noise, torch.tensor(1.0))  # noqa: E731
    calls, taken = list[float](), [list[float]() for _ in every]
    for _ in range(REPEATS):
        for seconds, (rule, sigmas, accelerator) in zip(taken, methods, strict=True):
            calls.append(_seconds(call))
            with accelerated(model, accelerator):
                seconds.append(_seconds(lambda: solve(rule, denoiser, noise, sigmas)))  # noqa: B023
    one = statistics.median(calls)
    in_calls = [round(statistics.median(seconds) / one, 3) for seconds in taken]
    spread = [round((max(seconds) - min(seconds)) / one, 3) for seconds in taken]
    content = {"samples": TIMED, "call_seconds": one, "names": names, "times": in_calls, "spread": spread}
    write(path, {**content, "environment": environment()})


def _seconds(work: Any) -> float:  # noqa: ANN401 - a callable
    with torch.no_grad():
        began = time.perf_counter()
        work()
        return time.perf_counter() - began


def drawn(results: Path, docs: Path) -> Iterator[Path]:
    """There are no pictures."""
    yield from ()


def printed(results: Path) -> str:
    """The page's table of what has been measured."""
    return together_results.table(learned_results.contents(results))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing, or prints."""
    return cells_command(argv, __doc__, "MODEL,KIND,CALLS,SEED", together_results.FOLDER, jobs, run, printed, drawn)


if __name__ == "__main__":
    raise SystemExit(main())
