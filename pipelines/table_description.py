"""A table as text: what it costs, its steps, its order, where it comes from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..formats.texts import printable
from ..solvers.table import Table
from .table_text import (
    MEMORY,
    has_analytic_anchor,
    lookahead_rows,
    memory_rows,
    point_numbers,
    point_sigmas,
)

SECOND_ORDER = 1e-6  # a learned table's moments are free; only exact ones are worth the name


def headline(table: Table) -> str:
    """One line: what it costs and what it is."""
    calls = table.calls[1:] if table.calls[0] == 0 else table.calls
    kinds = {(1,): "one-call", (2,): "two-call"}.get(tuple(set(calls)), "mixed")
    count = f"{len(calls)} {kinds} step{'s' * (len(calls) > 1)}"
    analytic = "an analytic first step and " if table.calls[0] == 0 else ""
    notes = [note for note, applies in (("AFS", table.afs), ("free sums", not table.consistent)) if applies]
    return ", ".join(
        [f"{analytic}{count}", f"{table.depth} sequential calls", f"{table.nfe} evaluations a sample",
         f"K = {table.num_parallel}", *notes]
    )  # fmt: skip


def describe(table: Table) -> str:
    """The whole table as text."""
    learned = table.provenance
    guidance = "" if learned.guidance is None else f"guidance {learned.guidance:g}"
    purpose = [part for part in (learned.model, learned.path, guidance) if part]
    lines = [headline(table), *(["for " + ", ".join(map(printable, purpose))] if purpose else [])]
    rows = [*steps(table)]
    lines += [f"digest {table.digest}", "", *aligned(rows), "", verdict(table)]
    if {"anchor told", "points told"} & set(rows[0]):
        lines.append("told: the noise level that the network is told, a scale times sigma")
    memory, directions = [*memory_rows(table)], [*lookahead_rows(table)]
    if memory:
        lines += ["", f"memory: {MEMORY}", *aligned(memory)]
    if directions:
        lines += ["", "look-ahead: direction to each point as anchor | memory", *aligned(directions)]
    return "\n".join([*lines, "", *origin(table)]).rstrip()


def steps(table: Table) -> Iterator[tuple[str, ...]]:
    """A head and one row per step."""
    sigmas, moments = [f"{sigma:.6g}" for sigma in table.sigmas], table.moments()
    columns = {
        "step": [str(n) for n in range(table.num_steps)],
        "calls": [str(calls - (n == 0 and calls == 2 and table.afs)) for n, calls in enumerate(table.calls)],
        "sigma": sigmas[:-1],
        "to": sigmas[1:],
        **anchor_columns(table),
        **(point_columns(table) if table.num_nodes else {}),
        "anchor": [f"{weight:.4f}" for weight in table.anchor],
        "sum": [f"{total:.4f}" for total in moments[:, 0]],
        "moment": [f"{first:.4f}" for first in moments[:, 1]],
        "order": orders(table),
    }
    yield tuple(columns)
    yield from zip(*columns.values(), strict=True)


def anchor_columns(table: Table) -> dict[str, list[str]]:
    """The anchors' scales and the noise levels that the network is told there, where these are others than its own;
    factors of the guidance, where one is not 1.
    """
    evaluated = [not has_analytic_anchor(table, n) for n in range(table.num_steps)]

    def column(values: np.ndarray, form: str) -> list[str]:
        return [f"{value:{form}}" if e else "-" for value, e in zip(values, evaluated, strict=True)]

    out: dict[str, list[str]] = {}
    if (table.anchor_scale != 1).any():
        out["anchor scale"] = column(table.anchor_scale, ".4f")
        out["anchor told"] = column(table.anchor_scale * table.sigmas[:-1], ".4g")
    return out | ({"anchor guidance": column(table.anchor_guidance, ".4f")} if table.scales_guidance else {})


def point_columns(table: Table) -> dict[str, list[str]]:
    """What is known of each evaluated fan point; its scales only where one is not 1."""

    def column(rows: Iterable[np.ndarray], digits: int = 0) -> list[str]:
        return [point_numbers(table, n, row, digits) for n, row in enumerate(rows)]

    where = [point_sigmas(table, n) for n in range(table.num_steps)]
    levels = [scale * sigma for scale, sigma in zip(table.sigma_scale, where, strict=True)]
    out = {"nodes": column(table.nodes), "at sigma": column(where, 4), "weights": column(table.weights)}
    if (table.slope_scale != 1).any():
        out["slope scale"] = column(table.slope_scale)
    if (table.sigma_scale != 1).any():
        out |= {"sigma scale": column(table.sigma_scale), "points told": column(levels, 4)}
    return out | ({"guidance scale": column(table.guidance_scale)} if table.scales_guidance else {})


def orders(table: Table) -> list[str]:
    """Formal order of each step: 2 where the weights sum to 1 and their first moment is 1/2."""
    if not table.consistent:
        return ["free"] * table.num_steps
    return [_order(n, total, first, table) for n, (total, first) in enumerate(table.moments())]


def _order(n: int, total: float, first: float, table: Table) -> str:
    if abs(total - 1) > SECOND_ORDER or not is_told_plainly(table, n):
        return "0"
    analytic = n == 0 and (table.afs or table.calls[0] == 0)
    return "2" if abs(first - 0.5) <= SECOND_ORDER and not analytic else "1"


def is_told_plainly(table: Table, n: int) -> bool:
    """Whether the network is told its own noise level, at its own guidance, in every slope that a step weighs."""

    def plain(step: int, slot: int) -> bool:  # of the anchor, then of each fan point
        if slot == 0:
            return table.anchor_scale[step] == 1 == table.anchor_guidance[step]
        return table.sigma_scale[step, slot - 1] == 1 == table.guidance_scale[step, slot - 1]

    used, width = table.used[n], 1 + table.num_nodes
    own = [0, *(1 + j for j in range(table.num_nodes) if table.weights[n, j])]
    columns = {*used.memory, *(k - 1 for inside in used.lookahead for k in inside if k)}
    past = [divmod(k, width) for k in columns]
    return all(plain(n, slot) for slot in own) and all(plain(n - 1 - ago, slot) for ago, slot in past if n > ago)


def verdict(table: Table) -> str:
    """What the moments say of the whole table."""
    ending = "learned tables fit their few large steps"
    sums, firsts = table.moments().T
    if not table.consistent:
        away = float(np.abs(sums - 1).max())
        return f"free sums: weights need not sum to 1 (largest distance of an update's sum: {away:.3g}); {ending}"
    found = orders(table)
    if all(order == "2" for order in found):
        return "second order: in every step the weights sum to 1 and their first moment is 1/2"
    away = float(np.abs(firsts - 0.5).max())
    text = "not second order in every step" if "0" not in found else "scaled: not consistent in every step"
    return f"{text} (largest distance of a first moment from 1/2: {away:.3g}); {ending}"


def origin(table: Table) -> Iterator[str]:
    """Where it comes from, entry by entry."""
    entries = dataclasses.asdict(table.provenance)
    for name in ("schedule", "prediction", "resolution", "seed", "parent", "citation", "notes"):
        if entries[name] not in ("", None, ()):
            yield f"{name:<11} {shortened(entries[name])}"
    for entry in entries["accelerators"]:
        yield f"accelerator {shortened(entry)}"
    for name in ("metrics", "config", "metadata"):
        for key, value in entries[name].items():
            if value is None:
                continue
            yield f"{name:<11} {printable(key)} = {shortened(value)}"


def shortened(value: object) -> str:
    """A value in at most 100 characters, all of which can be printed."""
    text = printable(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= 100 else text[:97] + "..."


def aligned(rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns side by side."""
    kept = list(rows)
    widths = [max(len(row[i]) for row in kept) for i in range(len(kept[0]))]
    for row in kept:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
