"""The study's pictures: error against cost on each world, and what the parts are worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...evaluation.pareto import INK, LEARNED, costs, pareto_plot, plain_numbers, save_figure
from ..learned_results import contents
from .cells import ABLATIONS, HEADLINE
from .parts import Row, ablation_rows
from .results import comparison, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(results: Path, docs: Path) -> Iterator[Path]:
    """Writes the pictures of what has been measured."""
    files = contents(results)
    for name in HEADLINE:
        compared = comparison(files, name)
        if compared is not None:
            yield pareto_plot(compared, costs(compared)[:2], docs / picture(name))
    rows = [row for row in ablation_rows(files) if row.name != ABLATIONS[row.name].against]
    if rows:
        yield save_figure(ablation_figure(rows), docs / picture("ablations"))


def ablation_figure(rows: Sequence[Row]) -> Figure:
    """One line for each ablation: its error over that of the run beside it, seed by seed and in the middle."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 0.9 + 0.27 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    places = range(len(rows))[::-1]
    axes.axvline(1, color=INK, lw=1)
    for row, place in zip(rows, places, strict=True):
        axes.plot([row.ratios[0], row.ratios[-1]], [place, place], color=LEARNED[0], lw=1.6, alpha=0.5)
        axes.plot(row.ratios, [place] * len(row.ratios), "o", color=LEARNED[0], ms=3.5, alpha=0.5, mec="none")
        axes.plot([row.ratio], [place], "o", color=LEARNED[0], ms=7, mec="white")
    axes.set_yticks([*places], [_label(row) for row in rows], fontsize=9, color=INK)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xscale("log")
    plain_numbers(axes.xaxis, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    axes.grid(True, axis="x", color="#e9ebee", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("RMSE, times that of the run that differs in this alone (small dots: training seeds)", color=INK)
    axes.set_title("Ablations on digits-exact, 5 sequential calls", loc="left", fontweight="bold", color=INK)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _label(row: Row) -> str:
    what = ABLATIONS[row.name]
    return f"{what.about}: {what.says}".replace("`", "")
