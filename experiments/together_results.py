"""What `bench_together` has measured, as the page's tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .markdown import MISSING, markdown_table, measured_in

FOLDER = Path(__file__).resolve().parent / "results" / "together"
SOLVERS = {"euler": "Euler", "dpm2": "DPM-Solver-2", "ipndm2": "iPNDM-2", "ipndm3": "iPNDM-3"}
ENDINGS = {"-later": ", without it", "-gauss-newton": ", by Gauss-Newton"}  # of kinds
HOW = {
    "": "", "ras:ratio=0.5,where=fan": "half fan", "ras:ratio=0.5,warmup=2,gap=4": "half of the tokens",
    "first_block:threshold=0.5": "first block", "ilf": "feedback",
}  # fmt: skip


def rmse(cell: Mapping[str, Any]) -> float:
    """Of all its samples together."""
    return math.sqrt(statistics.fmean(error**2 for error in cell["errors"]))


def solver(cell: Mapping[str, Any]) -> str:
    """What a row is called."""
    if cell["kind"] in ("handmade", "feedback"):
        return SOLVERS[cell["solver"]]
    family = cell["table"]["provenance"]["config"]["family"]
    return f"learned, `{family}`" + next((text for end, text in ENDINGS.items() if cell["kind"].endswith(end)), "")


def accelerator(cell: Mapping[str, Any]) -> str:
    """What a row's accelerator is called."""
    how, _, random = cell["accelerated"].partition(",score=")
    return HOW[how] + (f", {random} tokens" if random else "")


def rows(cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table by their cost; cells, by their path, that differ in their training seed alone are one."""
    times = next((cell for cell in cells.values() if "times" in cell), {"names": [], "times": []})
    taken = dict(zip(times["names"], times["times"], strict=True))
    found: dict[tuple[Any, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for name, cell in cells.items():
        if "errors" in cell:
            found.setdefault((solver(cell), accelerator(cell), cell["calls"]), []).append((name, cell))
    out = []
    for (who, how, calls), members in found.items():
        errors = sorted(rmse(cell) for _, cell in members)
        seconds = [taken[name] for name, _ in members if name in taken]
        cost = statistics.fmean(cell["cost"] for _, cell in members)
        out.append({"solver": who, "accelerator": how, "calls": calls, "cost": cost, "errors": errors,
                    "seconds": seconds[0] if seconds else None})  # fmt: skip
    return sorted(out, key=lambda row: (round(row["cost"], 1), statistics.median(row["errors"])))


def table(cells: Mapping[str, Any]) -> str:
    """All rows as Markdown."""
    if not any("errors" in cell for cell in cells.values()):
        return MISSING
    lines = []
    for row in rows(cells):
        errors = row["errors"]
        spread = f" ({errors[0]:.4f} to {errors[-1]:.4f})" if len(errors) > 1 else ""
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        lines.append([row["solver"], row["accelerator"], str(row["calls"]), f"{row['cost']:.2f}", seconds,
                      f"{statistics.median(errors):.4f}{spread}"])  # fmt: skip
    head = ["solver", "accelerator", "steps or calls", "cost", "time", "RMSE"]
    environments = [cell["environment"] for cell in cells.values() if "environment" in cell]
    return f"{markdown_table(head, lines)}\n\n{measured_in(*environments)}"
