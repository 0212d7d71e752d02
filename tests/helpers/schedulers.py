"""Schedulers of every rule and table kind, for both paths."""

from __future__ import annotations

import dataclasses
from typing import Any

import epd
from epd.pipelines.layout import table_layout
from epd.pipelines.scheduler import EPDScheduler
from helpers import tables

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "shift": 3.0}
SIGMAS = {"ve": [14.0, 6.0, 2.0, 0.6, 0.05], "flow": [1.0, 0.8, 0.5, 0.2, 0.02]}
TABLES = {
    "epd": tables.epd_table(),
    "plugin": tables.epd_table(order=3),
    "memory": tables.full_table(),
    "memory afs": tables.full_table(afs=True),
    "one-call": tables.full_table(calls=1),
    "one-call afs": tables.full_table(calls=1, afs=True),
    "mixed": tables.full_table(calls=[1, 2, 1, 2]),
    "dense": tables.told_table(0),
    "dense fan": tables.told_table(2),
}
RULES = ("euler", "heun", "dpm2", "ipndm", "dpmpp")
KINDS = (*RULES, *TABLES)


def table(kind: str, path: str = "ve") -> epd.Table:
    provenance = epd.Provenance(path=path)
    # Unit scales: slopes are consistent.
    changes: dict[str, Any] = {"sigmas": SIGMAS[path], "slope_scale": None, "sigma_scale": None}
    return dataclasses.replace(TABLES[kind], **changes, provenance=provenance)


def made(kind: str, path: str = "ve", **changes: Any) -> EPDScheduler:  # noqa: ANN401
    config = {**(FLOW if path == "flow" else BETAS), **changes}
    if kind in RULES:
        return EPDScheduler(rule=kind, **config)
    return EPDScheduler.from_table(table(kind, path), config)


def calls(scheduler: Any, steps: int = 4) -> int:  # noqa: ANN401 - any scheduler
    """The `num_inference_steps` for this many steps: of a hand-made or stock scheduler that, of a table its calls."""
    if scheduler.config.get("table") is None:
        return steps
    return len(table_layout(scheduler.table, scheduler.frame, scheduler.placement).calls)


def public(config: Any) -> dict[str, Any]:  # noqa: ANN401 - diffusers' frozen dictionary
    return {k: v for k, v in config.items() if not k.startswith("_")}
