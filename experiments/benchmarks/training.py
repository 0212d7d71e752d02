"""Distillation and refinement: what an update costs, and how that grows with steps, points, batch and resolution."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...denoisers.digits import classes_of
from ...denoisers.rows import limit_rows
from ...distill.config import DistillConfig
from ...distill.plan import make_plan
from ...distill.train import distill
from ...rl.config import RefineConfig
from ...rl.refine import refine
from ...rl.task import Task
from .networks import Subject, around, plain_table, subject, transformer
from .timing import Call, Machine, Settings, Times, bare, bound, recorded

MANY = 100_000  # updates, of which as many are made as are timed
BASE: dict[str, int] = {"steps": 3, "points": 2, "batch": 16, "resolution": 8}
GROWTH: dict[str, tuple[int, ...]] = {
    "steps": (2, 4, 8), "points": (1, 2, 4), "batch": (8, 16, 32, 64), "resolution": (8, 16, 32),
}  # fmt: skip


def cells(settings: Settings) -> dict[str, Any]:
    """A cell for each trainer and what it grows with."""
    works = {"distill": distillation, "refine": refinement}
    axes = ("steps",) if settings.small else GROWTH
    return {f"{name}-{axis}": partial(measure, name, works[name], axis) for name in works for axis in axes}


def measure(name: str, make: Any, axis: str, settings: Settings, machine: Machine) -> list[dict[str, Any]]:  # noqa: ANN401
    """A row for each value."""
    rows = []
    for value in settings.some(GROWTH[axis]):
        with tempfile.TemporaryDirectory() as folder:
            at = {**BASE, axis: value} if not settings.small else {**BASE, "batch": 2, axis: value}
            rows.append({"trainer": name, "grows with": axis, **at, **make(at, Path(folder), settings, machine)})
    return rows


def network_of(at: dict[str, int], settings: Settings) -> Subject:
    """The `digits` network at its own resolution, one of its size at others."""
    if settings.small:
        return subject("tiny", settings)
    if at["resolution"] == BASE["resolution"]:
        it = subject("digits", settings)
    else:
        own: Any = subject("digits", settings).network.config
        made = transformer(
            own.num_attention_heads, own.num_layers, at["resolution"], own.in_channels, own.patch_size
        )
        it = around("digits", made, settings.device)
    return it


def update(
    updates: Iterator[Any], it: Subject, machine: Machine, settings: Settings, gradients: bool
) -> dict[str, Any]:
    """An update beside the bare calls that it makes, with their gradients in the states where it takes them."""
    next(updates)
    calls = recorded(it.network, lambda: next(updates))
    floor = (lambda: _backward(it, calls)) if gradients else bare(it.network, calls)

    def step() -> None:
        with torch.enable_grad():
            next(updates)

    times = Times({"update": step, "calls": floor}, settings)
    rows = sum(len(_state(call)) for call in calls)
    passes = 2 if gradients else 1  # back to the states costs about what forward does: the weights need no gradient
    least = round(passes * bound(it.network, calls, machine), 5)
    return {"rows": rows, **times.row("update", "calls"), "bound_ms": least}


def _state(call: Call) -> Tensor:
    return call[0][0] if call[0] else call[1]["hidden_states"]


def _backward(it: Subject, calls: Sequence[Call]) -> None:
    with torch.enable_grad():
        for args, kwargs in calls:
            x = args[0].detach().requires_grad_(True)
            torch.autograd.grad(it.network(x, *args[1:], **kwargs)[0].sum(), x)


def distillation(at: dict[str, int], folder: Path, settings: Settings, machine: Machine) -> dict[str, Any]:
    """An update of Adam through the trajectory."""
    it = network_of(at, settings)
    config = DistillConfig(
        family="epd", calls=2 * at["steps"], afs=False, points=at["points"], batch=at["batch"], accumulate=1,
        pool=at["batch"], validation=1, validate_every=MANY, iterations=MANY, screening=1, schedule="polynomial",
        optimizer="adam", teacher="heun", teacher_multiplier=1,
    )  # fmt: skip
    model = replace(it.model, seed_rows=classes_of)
    return update(distill(model, make_plan(model, config), cache=folder), it, machine, settings, gradients=True)


def refinement(at: dict[str, int], folder: Path, settings: Settings, machine: Machine) -> dict[str, Any]:
    """An update of the policy, for the mean of the states."""
    it = network_of(at, settings)
    config = RefineConfig(
        steps=MANY, groups=at["batch"] // 2, group_size=2, held_out=64, evaluate_every=MANY, converged=0
    )
    model = limit_rows(replace(it.model, seed_rows=classes_of))
    task = Task(model, {"bright": lambda rollout: rollout.states.flatten(1).mean(1)})
    table = plain_table(at["steps"], at["points"])
    return update(refine(task, table, config), it, machine, settings, gradients=False)
