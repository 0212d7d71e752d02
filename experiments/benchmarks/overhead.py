"""What the loop costs: `solve` beside the bare network calls of the same shapes, and a fan beside one call."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...denoisers.digits import digits
from ...distill.config import DistillConfig
from ...distill.initial import initial_table
from ...solvers.answers import batched
from ...solvers.solve import solve
from ...solvers.table import Table
from .latency import answered
from .networks import plain_table, subject
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
        run = partial(solve, table.rule(settings.device), denoiser, noise, table.sigmas)
        with torch.no_grad():
            calls = recorded(it.network, run)
        times = Times({"solve": run, "calls": bare(it.network, calls)}, settings)
        about = {"network": it.name, "batch": batch, "what": f"solve, {family}"}
        rows.append({**about, **times.row("solve", "calls"), "bound_ms": bound(it.network, calls, machine)})
    fan = answered(it, batch, 2, {"batched": batched}, settings, machine)[0]
    about = {"network": it.name, "batch": batch, "what": "one question of two points"}
    return [*rows, {**about, **{key: fan[key] for key in rows[0] if key not in about}}]
