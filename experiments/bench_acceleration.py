"""Policies that leave out network calls, beside static ones of equal mean cost, on the embedded `digits` network.

    python -m epd.experiments.bench_acceleration --only digits,both,24,0     # MODEL,HEADS,GRID,SEED; all decays
    python -m epd.experiments.bench_acceleration                             # what is missing: some ten minutes a cell
    python -m epd.experiments.bench_acceleration --print

A cell is a policy that is learned by closeness to the converged end points, at one decay, from one seed, with both
heads or one of them (`tpdm`: the step head with leave-one-out), and measured on fresh noise. Beside it, at its mean
number of calls, between the two whole numbers of steps next to it: fewer plain Euler steps; the one mask of the same
grid that computes the steps that the policy computes most often; and the schedule of GITS, dynamic programming over a
teacher's trajectories. Other rules, which cost nothing, are in the results of `epd compare`. A classifier that nobody
learned from judges all. Unguided.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..accelerators.accelerate import measure
from ..accelerators.heads_file import load_heads
from ..accelerators.rapid3 import POLICY
from ..denoisers.digits import NUM_CLASSES, classes_of, digits, digits_classifier
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..denoisers.rows import limit_rows
from ..distill.gits import gits_of
from ..formats.files import write_atomically
from ..rl.acceleration_config import AccelerationConfig
from ..rl.acceleration_rollout import Exploring, attached
from ..rl.learn import refine_acceleration
from ..runs.environment import environment
from ..solvers.exact import converged
from ..solvers.registry import SIMPLEST, Ends, make_rule, make_sigmas
from ..solvers.solve import solve
from .cells_command import cells_command, fits

RESULTS = Path(__file__).resolve().parent / "results" / "acceleration"
SCHEDULE, GRID, SEEDS, DECAYS = "logsnr", 24, (0, 1, 2), (0.97, 0.9, 0.8)
HEADS: dict[str, dict[str, Any]] = {
    "both": {}, "step": {"heads": ("step",)}, "cache": {"heads": ("cache",)},
    "tpdm": {"heads": ("step",), "baseline": "rloo"},
}  # fmt: skip
LEARNING: dict[str, Any] = {
    "schedule": SCHEDULE, "steps": 60, "held_out": 128, "lr": 3e-3, "tolerance": 1e-3, "evaluate_every": 20
}  # fmt: skip
FIRST_SEED, SAMPLES, TOLERANCE = 20_000, 256, 1e-3
TEACHER: dict[str, int] = {"samples": 64, "fine": 60}  # of GITS


@dataclass(frozen=True)
class Job:
    """A cell; `calls` are those of the plain solver."""

    model: str
    heads: str
    calls: int
    seed: int
    decay: float

    @property
    def name(self) -> str:
        """Of its file and of its run's folder."""
        return f"{self.model}-{self.heads}-{self.calls}-{self.decay:g}-{self.seed}"


def jobs(filters: Sequence[str] = ()) -> list[Job]:
    """The cells that fit; those of the ablation at one decay alone."""
    every = [
        Job("digits", heads, GRID, seed, decay)
        for seed in SEEDS for decay in DECAYS for heads in HEADS if heads == "both" or decay == 0.9
    ]  # fmt: skip
    return [job for job in every if not filters or any(fits(text, job) for text in filters)]


def run(job: Job, results: Path, work: Path) -> None:
    """Makes and measures a cell that is not there; what was learned of it before a kill is gone on from."""
    path = results / f"{job.name}.json"
    if path.exists():
        return
    config = AccelerationConfig(**LEARNING, **HEADS[job.heads], grid=job.calls, seed=job.seed, decay=job.decay)
    folder = work / job.name
    resume = (folder / "checkpoint.safetensors").exists()
    refine_acceleration(digits(), "closeness", config, folder, resume=resume)
    content = {
        "job": asdict(job), "config": config.model_dump(mode="json"), "report": json.loads(read(folder, "report.json")),
        **measured(digits(), folder, job.calls), "environment": environment(),
    }  # fmt: skip
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def measured(model: Model, folder: Path, grid: int) -> dict[str, Any]:
    """A policy on fresh samples beside static solvers of equal mean cost."""
    judge = Judge(model, list(range(FIRST_SEED, FIRST_SEED + SAMPLES)))
    levels = make_sigmas(SCHEDULE, grid, Ends.of(model))
    policy = Exploring(load_heads(folder / POLICY)[0])
    with attached(limit_rows(model, SAMPLES), policy), measure(model, counts=False) as counted:
        states = judge.solved(levels)
    assert policy.live is not None, "attached above"
    spent = policy.live.spent
    often = torch.tensor([called.rows / called.now.rows for called in counted.calls])
    calls = float(spent.mean())
    gits = gits_of(model, Ends.of(model), samples=TEACHER["samples"], fine=TEACHER["fine"])

    def mask(steps: int) -> Tensor:
        computed = often.sort(descending=True, stable=True).indices[:steps].sort().values
        return levels[[*computed.tolist(), grid]]

    static = {
        "fewer plain steps": lambda n: make_sigmas(SCHEDULE, n, Ends.of(model)),
        "one mask": mask,
        "GITS": gits.schedule,
    }  # fmt: skip
    return {
        "calls": calls,
        "least": float(spent.min()),
        "most": float(spent.max()),
        "calls by class": [float(spent[classes_of(judge.seeds) == k].mean()) for k in range(NUM_CLASSES)],
        "computed in each step": often.tolist(),
        "policy": judge.told(states),
        "plain": judge.told(judge.solved(levels)),
        "beside": {name: between(judge, schedule, calls, grid) for name, schedule in static.items()},
    }


def between(judge: Judge, schedule: Any, calls: float, most: int) -> dict[str, float]:  # noqa: ANN401
    """What a static solver gives at a number of calls that is not whole: between the two next to it."""
    low = min(max(1, math.floor(calls)), most)
    high = min(low + 1, most)
    one, other = (judge.told(judge.solved(schedule(n))) for n in (low, high))
    return {name: one[name] + (calls - low) * (other[name] - one[name]) for name in one}


class Judge:
    """Converged end points and a classifier, on the same noise for all solvers."""

    def __init__(self, model: Model, seeds: list[int]) -> None:
        self.model, self.seeds, self.classifier = model, seeds, digits_classifier()
        self.noise, self.bound = unit_noise(seeds, model.shape), model.for_seeds(seeds)
        ends = torch.tensor([model.sigma_max, model.sigma_min], dtype=torch.float64)
        with torch.no_grad():
            self.ends = converged(self.bound, self.noise, ends, TOLERANCE, TOLERANCE)[-1]

    def solved(self, sigmas: Tensor) -> Tensor:
        """End points of Euler on these levels."""
        with torch.no_grad():
            return solve(make_rule(SIMPLEST), self.bound, self.noise, sigmas)

    def told(self, states: Tensor) -> dict[str, float]:
        """RMSE to the converged end points, and the classifier's mean probability of the class that was asked for."""
        error = (states - self.ends).square().mean().sqrt()
        with torch.no_grad():
            sure = self.classifier(states.float()).softmax(1).gather(1, classes_of(self.seeds)[:, None])
        return {"rmse": float(error), "sure": float(sure.mean())}


def printed(results: Path) -> str:
    """A row for each cell that is there."""
    lines = [
        "| heads | decay | seed | calls | RMSE | plain Euler, all steps | as many plain steps | one mask | GITS |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(results.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        job, beside = cell["job"], cell["beside"]
        numbers = [cell["policy"], cell["plain"], *(beside[n] for n in ("fewer plain steps", "one mask", "GITS"))]
        values = " | ".join(f"{number['rmse']:.4f}" for number in numbers)
        lines.append(f"| {job['heads']} | {job['decay']:g} | {job['seed']} | {cell['calls']:.2f} | {values} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    return cells_command(
        argv, __doc__, "MODEL,HEADS,GRID,SEED", RESULTS, jobs, run, printed, lambda results, docs: []
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
