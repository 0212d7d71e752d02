"""What the loop costs: `solve` beside the bare network calls of the same shapes, and a fan beside one call.

Beside that, what `solve` takes outside of its network, and the same around a network that costs nothing: what the loop
takes longer around a real one is that the network has driven its code and data out of the processor's caches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...denoisers.digits import digits
from ...denoisers.networks import NetworkDenoiser, Rows
from ...denoisers.protocol import Denoiser
from ...distill.config import DistillConfig
from ...distill.initial import initial_table
from ...solvers.answers import batched
from ...solvers.auto import seconds_of
from ...solvers.solve import solve
from ...solvers.table import Table
from .latency import answered
from .networks import plain_table, subject
from .profile import free
from .timing import Machine, Settings, Times, bare, bound, recorded

TABLES = Path(__file__).resolve().parents[1] / "results" / "tables"


def cells(settings: Settings) -> dict[str, Any]:
    """A cell for each batch."""
    name = "tiny" if settings.small else "digits"
    return {f"{name}-batch-{batch}": partial(measure, name, batch) for batch in settings.some((1, 64))}


def tables(settings: Settings) -> dict[str, Table]:
    """What dense and EPD's trainings start from, and a learned two-call one with its anchor and memory."""
    if settings.small:
        return {"plain": plain_table(2, 2)}
    return {
        "dense, K = 1": initial_table(DistillConfig(points=1), digits()),
        "dense, K = 2": initial_table(DistillConfig(points=2), digits()),
        "epd": initial_table(DistillConfig(family="epd"), digits()),
        "two-call": Table.load(TABLES / "digits-two-call-5.json"),
    }


def measure(name: str, batch: int, settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """A row for each table, and one for a question of two points."""
    it, rows = subject(name, settings), []
    noise, denoiser = it.noise(batch), it.bound(batch)
    for family, table in tables(settings).items():
        solved = partial(solve, table.rule(settings.device), noise=noise, sigmas=table.sigmas)
        run = partial(solved, denoiser)
        with torch.no_grad():
            calls = recorded(it.network, run)
        times = Times({"solve": run, "calls": bare(it.network, calls)}, settings)
        about = {"network": it.name, "batch": batch, "what": f"solve, {family}"}
        took = outside(solved, denoiser, settings) if settings.device.type == "cpu" else {}
        rows.append({**about, **times.row("solve", "calls"), "bound_ms": bound(it.network, calls, machine), **took})
    fan = answered(it, batch, 2, {"batched": batched}, settings, machine)[0]
    about = {"network": it.name, "batch": batch, "what": "one question of two points"}
    return [*rows, {**about, **{key: fan[key] for key in rows[0] if key in fan and key not in about}}]


def outside(solved: Callable[[Denoiser], object], denoiser: NetworkDenoiser, settings: Settings) -> dict[str, float]:
    """Milliseconds that a solve takes outside of the network, and around one that costs nothing; medians."""
    inside = 0.0

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        nonlocal inside
        began = time.perf_counter()
        out = denoiser.call(x, timestep, rows)
        inside += time.perf_counter() - began
        return out

    works = {"outside_ms": replace(denoiser, call=call), "alone_ms": replace(denoiser, call=free)}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with torch.no_grad():
        for _ in range(settings.rounds):
            for name, around in works.items():
                inside = 0.0
                whole = seconds_of(partial(solved, around), settings.device)
                seconds[name].append(whole - inside)
    return {name: round(1e3 * statistics.median(each), 4) for name, each in seconds.items()}
