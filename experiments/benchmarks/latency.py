"""What a question costs against its number of points and samples, for networks of several sizes and each answer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ...solvers.answers import MakeAnswer, batched, serial, streams
from ...solvers.walk import Ask
from .networks import Subject, subject
from .timing import Machine, Settings, Times, bare, bound, recorded

# Network -> batches; on a processor larger ones of the larger networks take minutes a round.
BATCHES = {"tiny": (1,), "digits": (1, 8, 64), "dit-7M": (1, 8), "dit-33M": (1,)}
CUDA_BATCHES = {"digits": (1, 8, 64), "dit-33M": (1, 8, 64), "dit-130M": (1, 8), "dit-675M": (1, 8)}
POINTS = (1, 2, 4, 8)


def cells(settings: Settings) -> dict[str, Any]:
    """A cell for each network and batch."""
    ours = CUDA_BATCHES if settings.device.type == "cuda" else BATCHES
    if settings.small:
        ours = {"tiny": (1,)}
    return {
        f"{name}-batch-{batch}": partial(measure, name, batch)
        for name, batches in ours.items()
        for batch in batches
        if name != "tiny" or settings.small
    }


def measure(name: str, batch: int, settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """A row for each number of points and answer."""
    it, rows = subject(name, settings), []
    answers = {"batched": batched, "serial": serial}
    if settings.device.type == "cuda":
        answers["streams"] = streams
    for points in settings.some(POINTS) if not settings.small else (2,):
        rows += answered(it, batch, points, answers, settings, machine)
    return rows


def answered(
    it: Subject, batch: int, points: int, answers: dict[str, MakeAnswer], settings: Settings, machine: Machine
) -> list[dict[str, Any]]:
    """Each answer to one question, beside the bare calls that it makes and one call of a single point."""
    denoiser, device = it.bound(batch), settings.device
    states = it.noise(batch).expand(points, batch, *it.model.shape).contiguous()
    levels = torch.linspace(1, 2, points, dtype=torch.float64, device=device)
    ask, one = Ask(states, levels), Ask(states[:1], levels[:1])
    works = {name: partial(make(denoiser), ask) for name, make in answers.items()}
    with torch.no_grad():
        calls = {name: recorded(it.network, work) for name, work in works.items()}
        single = recorded(it.network, lambda: batched(denoiser)(one))
    floors = {f"{name}'s calls": bare(it.network, made) for name, made in calls.items()}
    times = Times({**works, **floors, "one point": bare(it.network, single)}, settings)
    return [
        {
            "network": it.name, "parameters": it.parameters, "batch": batch, "points": points, "answer": name,
            **times.row(name, f"{name}'s calls"), "over_one": times.ratio(name, "one point"),
            "bound_ms": bound(it.network, calls[name], machine),
        }
        for name in works
    ]  # fmt: skip
