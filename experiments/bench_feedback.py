"""Inner-loop feedback on the embedded `digits` network beside hand-made solvers that cost as many blocks.

    python -m epd.experiments.bench_feedback

Feedback is learned for Euler's steps, within a bound on processor seconds; the same command again goes on where it was.
Then all solvers go along the same kind of schedule to the end points of the converged ODE, on fresh noise. Costs are in
evaluations of all blocks of one sample. Unguided.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..accelerators.accelerate import accelerate, decelerate, measure
from ..accelerators.feedback_block import read_trained
from ..accelerators.ilf import ILF
from ..denoisers.digits import digits
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..distill.feedback_config import FeedbackConfig
from ..distill.feedback_run import distill_feedback
from ..formats.files import write_atomically
from ..runs.environment import environment
from ..solvers.exact import converged
from ..solvers.registry import NUMBERED, RULES, SIMPLEST, Ends, NumberedRule, make_rule, make_sigmas
from ..solvers.solve import solve

RESULTS = Path(__file__).resolve().parent / "results" / "feedback.json"
SCHEDULE = "logsnr"
CONFIG: dict[str, Any] = {
    "steps": 4, "begin": 1, "count": 1, "schedule": SCHEDULE, "objective": "end", "iterations": 480, "batch": 32,
    "pool": 512, "validation": 128, "validate_every": 80, "lr": 2e-3, "scale_lr": 3e-2, "teacher": "dpmpp",
    "teacher_multiplier": 16,
}  # fmt: skip
FIRST_SEED, TOGETHER, TOLERANCE = 10_000, 128, 1e-4
PLAIN: tuple[NumberedRule, ...] = ("euler", "dpm2", "ipndm2", "ipndm3", "dpmpp2")


class OutOfTime(RuntimeError):
    """Training took more processor time than it may."""


@contextmanager
def bounded(seconds: float, kept: Path) -> Iterator[None]:
    """Raises OutOfTime after so many processor seconds of this process and those before it, which `kept` counts."""
    spent, began = spent_in(kept), time.process_time()

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"training took {seconds:g} processor seconds: give fewer --iterations and another --work")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, max(seconds - spent, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        write_atomically(kept, json.dumps(spent + time.process_time() - began).encode())


def spent_in(kept: Path) -> float:
    """Processor seconds of training so far."""
    return float(json.loads(kept.read_text())) if kept.exists() else 0.0


def error(model: Model, rule: NumberedRule, steps: int, seeds: Sequence[int], ends: Tensor) -> tuple[float, float]:
    """(RMSE to these end points, evaluations of all blocks for one sample)."""
    sigmas = make_sigmas(SCHEDULE, steps, Ends.of(model))
    noise, denoiser = unit_noise(seeds, model.shape), model.for_seeds(seeds)
    with torch.no_grad(), measure(model, counts=False) as measured:
        x = solve(make_rule(rule), denoiser, noise, sigmas)
    return float((x - ends).double().square().mean().sqrt()), measured.cost.blocks / len(seeds)


def end_points(model: Model, seeds: Sequence[int]) -> Tensor:
    """(B, *S) of the converged ODE."""
    sigmas, parts = make_sigmas(SCHEDULE, 1, Ends.of(model)), []
    for start in range(0, len(seeds), TOGETHER):
        part = seeds[start : start + TOGETHER]
        denoiser = model.for_seeds(part)
        with torch.no_grad():
            noise = unit_noise(part, model.shape)
            parts.append(converged(denoiser, noise, sigmas, rtol=TOLERANCE, atol=TOLERANCE)[-1])
    return torch.cat(parts).float()


def results(model: Model, path: Path, samples: int) -> dict[str, Any]:
    """Every solver's cost and error, and the errors' ratio to those of plain Euler at equal blocks."""
    seeds = range(FIRST_SEED, FIRST_SEED + samples)
    ends, loop = end_points(model, seeds), read_trained(path).loop
    accelerate(model, ILF(str(path)))
    rmse, cost = error(model, SIMPLEST, loop.num_steps, seeds, ends)
    decelerate(model)
    cells = {f"ILF {loop.num_steps}": {"cost": cost, "rmse": rmse}}
    for rule in PLAIN:
        for calls in sorted({loop.num_steps, round(cost)}):
            steps = calls // RULES[NUMBERED[rule][0]].step_calls
            plain, own = error(model, rule, steps, seeds, ends)
            cells[f"{rule} {steps}"] = {"cost": own, "rmse": plain}
    equal = cells[f"{SIMPLEST} {round(cost)}"]
    return {"cells": cells, "equal blocks": equal["cost"], "ratio to Euler": rmse / equal["rmse"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Learns, measures, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_feedback"), help="folder of the run")
    parser.add_argument("--seconds", type=float, default=600.0, help="most processor seconds of training")
    parser.add_argument("--iterations", type=int, default=CONFIG["iterations"])
    parser.add_argument("--samples", type=int, default=256, help="fresh samples that are measured")
    args = parser.parse_args(argv)
    config = FeedbackConfig(**{**CONFIG, "iterations": args.iterations})
    kept = args.work / "processor_seconds.json"
    with bounded(args.seconds, kept):
        path = distill_feedback(digits(), config, args.work, resume=True)
    content = {
        "environment": environment(),
        "config": config.model_dump(mode="json"),
        "training processor seconds": spent_in(kept),
        "samples": args.samples,
        "held out": read_trained(path).metrics,
        **results(digits(), path, args.samples),
    }
    write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())
    print(json.dumps({name: content[name] for name in ("cells", "ratio to Euler")}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
