"""What was measured, as Markdown and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluation.pareto import HANDMADE, LEARNED, log_axes, save_figure
from ...formats.files import write_atomically
from ...runs.environment import environment
from ..markdown import MISSING, markdown_table, measured_in
from .timing import Machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
TITLES = {
    "overhead": "The loop beside its network calls",
    "latency": "A question against its points and samples",
    "pipelines": "Ten sequential calls in a diffusers pipeline",
    "graphs": "CUDA graphs",
    "training": "Distillation and refinement, one update",
    "memory": "Peak memory",
    "profile": "Operations and microseconds by file",
    "caches": "Block caches beside the network's calls",
    "gpu": "Full-size networks on a GPU",
}
HEADS = {
    "ms": "ms", "floor_ms": "bare calls, ms", "ratio": "times bare calls", "bound_ms": "bound, ms",
    "over_one": "times one point", "over_2m": "times DPM-Solver++(2M)", "over_eager": "times eager",
    "peak_mib": "peak, MiB", "floor_mib": "bare call, MiB", "own_ms": "own, ms a call", "own_ms_least": "least",
    "of_50_ms": "of a 50 ms call", "holds": "at most 1 %", "plain_ms": "bare, ms a call",
    "operations": "operations added a call", "outside_ms": "outside the network, ms",
    "alone_ms": "the same around a free network",
}  # fmt: skip
SPREADS = ("ms_low", "ms_high", "ratio_low", "ratio_high")
Cells = Mapping[str, Mapping[str, Any]]  # of one suite, by name
PALETTE = (*LEARNED, "#1d8a6b", "#37474f", "#8d6e63")


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Suite -> cell -> what was measured."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*/*.json")):
        found.setdefault(path.parent.name, {})[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return found


def save(folder: Path, suite: str, cell: str, machine: Machine, rows: Any) -> None:  # noqa: ANN401
    """Keeps what was measured, with where."""
    content = {"environment": environment(), "machine": asdict(machine), "rows": rows}
    write_atomically(folder / suite / f"{cell}.json", (json.dumps(content, indent=1) + "\n").encode())


def rendered(suite: str, files: Mapping[str, Any]) -> str:
    """A suite's table, of the files of a folder of results by their path in it."""
    cells = {path: cell for path, cell in files.items() if path.startswith(f"{suite}/")}
    return table(cells) if cells else MISSING


def table(cells: Cells) -> str:
    """All rows of a suite, each figure beside its floor; quartiles in brackets."""
    said = [cell["rows"] for cell in cells.values() if isinstance(cell["rows"], str)]
    rows = [row for cell in cells.values() if not isinstance(cell["rows"], str) for row in cell["rows"]]
    texts = list(said)
    if rows:
        columns: list[str] = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in SPREADS]
        lines = [[_shown(row, name) for name in columns] for row in rows]
        texts.append(markdown_table([HEADS[name] if name in HEADS else name for name in columns], lines))
    texts.append(measured_in(*(cell["environment"] for cell in cells.values())))
    return "\n\n".join(texts)


def _shown(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    value = row[name]
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return text if low is None or high is None else f"{text} [{low:.4g}, {high:.4g}]"


RENDERERS = {f"benchmark-{suite}": ("benchmarks", partial(rendered, suite)) for suite in TITLES}


def markdown(found: Mapping[str, Cells]) -> str:
    """Everything."""
    about = (
        "Medians and quartiles over rounds that make all works of a cell in turns; ratios are those of one round. The "
        "bound is what the machine cannot beat: FLOPs at the speed of its best matrix product, or bytes at that of its "
        "best copy."
    )
    parts = ["# Benchmarks", about]
    for suite, title in TITLES.items():
        if suite in found:
            parts += [f"## {title}", table(found[suite])]
    return "\n\n".join(parts) + "\n"


def draw(found: Mapping[str, Cells], folder: Path) -> list[Path]:
    """A question's cost against its points, and an update's against what it grows with."""
    drawn = []
    if "latency" in found:
        drawn.append(_figure(found["latency"], folder / "latency.png", _latency, "network"))
    if "training" in found:
        drawn.append(_figure(found["training"], folder / "training.png", _growth, "trainer"))
    return drawn


def _figure(cells: Cells, path: Path, drawing: Any, by: str) -> Path:  # noqa: ANN401
    from matplotlib.figure import Figure

    rows = [row for cell in cells.values() for row in cell["rows"]]
    panels = list(dict.fromkeys(row[by] for row in rows))
    figure = Figure(figsize=(4.6 * len(panels), 4), layout="constrained", facecolor="white")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        log_axes(axes)
        axes.set_title(name, loc="left")
        drawing(axes, [row for row in rows if row[by] == name])
        axes.legend(facecolor="white", edgecolor="none", framealpha=0.9, fontsize=8)
    return save_figure(figure, path)


def _latency(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    kinds = list(dict.fromkeys((row["answer"], row["batch"]) for row in rows))
    for number, kind in enumerate(kinds):
        own = [row for row in rows if (row["answer"], row["batch"]) == kind]
        x, color = [row["points"] for row in own], PALETTE[number % len(PALETTE)]
        axes.plot(x, [row["ms"] for row in own], "-o", ms=4, color=color, label=f"{kind[0]}, batch {kind[1]}")
        axes.plot(x, [row["floor_ms"] for row in own], ":", color=color)
        axes.plot(x, [row["bound_ms"] for row in own], "--", lw=0.8, color=HANDMADE)
    axes.set_xlabel("points; dotted: bare calls, dashed: the machine's bound")
    axes.set_ylabel("ms")


def _growth(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for number, axis in enumerate(dict.fromkeys(row["grows with"] for row in rows)):
        own = [row for row in rows if row["grows with"] == axis]
        x = [row[axis] / own[0][axis] for row in own]
        color = PALETTE[number % len(PALETTE)]
        axes.plot(x, [row["ms"] for row in own], "-o", ms=4, color=color, label=f"{axis}, from {own[0][axis]}")
        axes.plot(x, [row["floor_ms"] for row in own], ":", color=color)
    axes.set_xlabel("times the smallest; dotted: bare calls")
    axes.set_ylabel("ms an update")


def write(folder: Path) -> list[Path]:
    """benchmarks.md and the pictures, of the cells in a folder."""
    found = contents(folder)
    write_atomically(folder / "benchmarks.md", markdown(found).encode())
    return [folder / "benchmarks.md", *draw(found, folder)]
