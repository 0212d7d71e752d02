"""The picture of `bench_acceleration`: who computes when, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.pareto import INK, LEARNED, save_figure


def draw_decisions(report: Mapping[str, Any], path: Path) -> Path:
    """A row for each prompt of a run's report, those with fewest calls first; a filled cell is a call that is made.

    Args:
        report: of `epd refine-acceleration`.
    """
    from matplotlib.figure import Figure

    rows = sorted(report["who computes"], key=lambda row: row["steps"].count("1"))
    steps = len(rows[0]["steps"])
    figure = Figure(figsize=(0.26 * steps + 4.2, 0.24 * len(rows) + 1.3), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        asked = [bit == "1" for bit in row["steps"]]
        colors = [LEARNED[0] if one else "#e9ebee" for one in asked]
        axes.scatter(range(1, steps + 1), [y] * steps, c=colors, s=90, marker="s", linewidths=0)
        axes.text(steps + 0.9, y, f"{sum(asked)}", va="center", ha="left", color=INK, fontsize=9)
    axes.set_yticks(range(len(rows)), [row["prompt"] for row in rows], fontsize=9, color=INK)
    axes.set_xticks([1, *range(5, steps + 1, 5)])
    axes.set_xlim(0.3, steps + 2)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(colors="#5b6470", length=0)
    axes.set_xlabel("step of the plain solver; to the right: calls of the sample", color=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.suptitle("Who asks the network when", x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    return save_figure(figure, path)
