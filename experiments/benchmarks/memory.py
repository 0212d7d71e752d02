"""Peak memory, in bytes of tensors that live together: of fans, and of end-point distillation."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...denoisers.rows import limit_rows
from ...distill.config import DistillConfig
from ...distill.plan import make_plan
from ...distill.train import distill
from ...solvers.answers import batched, serial
from ...solvers.walk import Ask
from .networks import subject
from .timing import Machine, Settings, bare, peak_bytes, recorded

LIMIT = 2**24


def cells(settings: Settings) -> dict[str, Any]:
    """A cell for fans, and one for training."""
    return {"fans": fans, "training": training}


def _mib(count: int) -> float:
    return round(count / 2**20, 3)


def fans(settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """A question of K points to 8 samples: at once, one after another, and within a limit, beside a bare call."""
    it, rows = subject("tiny" if settings.small else "digits", settings), []
    model = limit_rows(it.model, max_memory=LIMIT)
    for points in settings.some((1, 2, 4, 8)):
        states = it.noise(8).expand(points, 8, *it.model.shape).contiguous()
        levels = torch.linspace(1, 2, points, dtype=torch.float64, device=settings.device)
        bound = it.bound(8)
        answers = {"batched": batched(bound), "serial": serial(bound)}
        answers[f"batched, at most {LIMIT >> 20} MiB"] = batched(model.for_seeds(range(8)))
        with torch.no_grad():
            for name, answer in answers.items():
                work = partial(answer, Ask(states, levels))
                calls = recorded(it.network, work)
                floor = peak_bytes(bare(it.network, calls), settings.device)
                peak = peak_bytes(work, settings.device)
                about = {"what": f"a question, {name}", "points": points}
                row = {**about, "peak_mib": _mib(peak), "floor_mib": _mib(floor)}
                rows.append({**row, "ratio": round(peak / floor, 3)})
    return rows


def training(settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """End-point distillation of more and more steps, its activations kept or recomputed; beside one call's gradient."""
    it, rows = subject("tiny" if settings.small else "digits", settings), []
    for steps in settings.some((3, 6, 12, 20)):
        for checkpointing in (False, True):
            config = DistillConfig(
                family="epd", calls=2 * steps, afs=False, points=2, batch=4, accumulate=1, pool=4, validation=1,
                iterations=1, screening=1, schedule="polynomial", optimizer="adam", teacher="heun",
                teacher_multiplier=1, checkpointing=checkpointing,
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                run = partial(_learn, it.model, config, Path(folder))
                run()  # the teacher is on disk from here on
                peak = peak_bytes(run, settings.device)
            call = peak_bytes(partial(_gradient, it), settings.device)
            what = "distillation, checkpointed" if checkpointing else "distillation"
            row = {"what": what, "steps": steps, "peak_mib": _mib(peak), "floor_mib": _mib(call)}
            rows.append({**row, "ratio": round(peak / call, 3)})
    return rows


def _learn(model: Any, config: DistillConfig, folder: Path) -> None:  # noqa: ANN401
    for _ in distill(model, make_plan(model, config), cache=folder):
        pass


def _gradient(it: Any) -> None:  # noqa: ANN401
    """Of one call of as many rows as a fan of two points has: 4 samples."""
    x = it.noise(8).requires_grad_(True)
    torch.autograd.grad(it.bound(8)(x, torch.tensor(1.0, dtype=torch.float64)).sum(), x)
