"""Error against cost: the Pareto plots of a comparison."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.files import write_atomically
from .comparison import Cell, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LEARNED = ("#c8102e", "#e8731a", "#8e2f8f", "#b8860b", "#d4507a")
HANDMADE = "#8a93a0"
PEER = "#3f72af"
INK = "#20252c"
FEATURED = 5  # hand-made methods that are drawn in full; the others are paler


@dataclass(frozen=True)
class CostAxis:
    """What the horizontal axis counts."""

    name: str
    label: str
    of: Callable[[Cell], float]
    whole: bool


@dataclass(frozen=True)
class Curve:
    """The lower envelope of a group: strictly less error at each greater cost."""

    group: str
    learned: bool
    peer: bool
    points: list[tuple[float, float]]


def costs(c: Comparison) -> list[CostAxis]:
    """Sequential calls, total evaluations, milliseconds a sample."""
    return [
        CostAxis("calls", "sequential network calls", lambda cell: cell.calls, True),
        CostAxis("evaluations", "network evaluations of one sample", lambda cell: cell.evaluations, True),
        CostAxis("time", f"milliseconds a batch of {min(c.batch, c.samples)}", lambda cell: 1000 * cell.seconds, False),
    ]


def curves(c: Comparison, cost: CostAxis) -> list[Curve]:
    """One curve a group, best first."""
    out = []
    for group in c.groups():
        cells = [cell for cell in c.cells if cell.group == group]
        points: list[tuple[float, float]] = []
        for at, error in sorted((cost.of(cell), cell.rmse) for cell in cells):
            if not points or error < points[-1][1]:
                points.append((at, error))
        out.append(Curve(group, any(cell.learned for cell in cells), any(cell.peer for cell in cells), points))
    return out


def pareto_plots(c: Comparison, folder: Path) -> list[Path]:
    """pareto_calls.png, pareto_evaluations.png, pareto_time.png and pareto.png, all three side by side."""
    single = [pareto_plot(c, [cost], folder / f"pareto_{cost.name}.png") for cost in costs(c)]
    return [*single, pareto_plot(c, costs(c), folder / "pareto.png")]


def pareto_plot(c: Comparison, shown: Sequence[CostAxis], path: Path) -> Path:
    """One picture with a panel for each of the costs."""
    return save_figure(pareto_figure(c, shown), path)


def pareto_figure(c: Comparison, shown: Sequence[CostAxis]) -> Figure:
    """A panel for each of the costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6 * len(shown), 5.4), layout="constrained", facecolor="white")
    for axes, cost in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw(axes, c, cost)
    _title(figure, f"Error against cost on {c.model}", f"{c.samples:,} samples; hand-made solvers in their best "
           "variant on their best schedule")  # fmt: skip
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 160) -> Path:
    """Writes a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, dpi=dpi, format="png")
    write_atomically(path, buffer.getvalue())
    return path


def _title(figure: Figure, title: str, subtitle: str) -> None:
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    figure.supxlabel(subtitle, x=0.012, ha="left", fontsize=9, color="#5b6470")


def _draw(axes: Axes, c: Comparison, cost: CostAxis) -> None:
    shown = [curve for curve in curves(c, cost) if curve.points]
    learned = [curve for curve in shown if curve.learned]
    handmade = [curve for curve in shown if not curve.learned and not curve.peer]
    _axes(axes, shown, cost)
    ends = []
    for i, curve in enumerate(reversed(handmade)):
        featured = len(handmade) - i <= FEATURED
        grey = HANDMADE if featured else "#cdd2d9"
        axes.plot(*zip(*curve.points, strict=True), "-o", color=grey, lw=1.3, ms=3.2, zorder=2 + i / 100)
        ends.append((curve, "#5b6470" if featured else "#9aa2ad", False))
    for curve in (curve for curve in shown if curve.peer):
        axes.plot(*zip(*curve.points, strict=True), "--o", color=PEER, lw=1.1, ms=2.6, zorder=3)
        ends.append((curve, PEER, False))
    for i, curve in enumerate(learned):
        color = LEARNED[i % len(LEARNED)]
        axes.plot(*zip(*curve.points, strict=True), "-o", color=color, lw=2.6, ms=6.5, zorder=5, mec="white", mew=1)
        ends.append((curve, color, True))
    _labels(axes, ends)


def _axes(axes: Axes, shown: Sequence[Curve], cost: CostAxis) -> None:
    from matplotlib.ticker import FixedLocator

    log_axes(axes)
    ys = [y for curve in shown for _, y in curve.points]
    # Solvers that diverge at few calls would flatten the rest: the best methods set the top, others enter from above.
    top = 1.5 * max(curve.points[0][1] for curve in shown[: FEATURED + sum(c.learned for c in shown)])
    xs = [x for curve in shown for x, y in curve.points if y <= top]
    axes.set_ylim(min(ys) / 1.25, top)
    axes.set_xlim(min(xs) / 1.07, max(xs) * 1.07)
    if cost.whole:
        axes.xaxis.set_major_locator(FixedLocator(_ticks(sorted({int(x) for x in xs}))))
    axes.set_xlabel(cost.label, color=INK)
    axes.set_ylabel("RMSE to the converged end point", color=INK)


def log_axes(axes: Axes) -> None:
    """Two log axes with plain numbers, a faint grid and no frame."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis, (1.0, 2.0, 3.0, 5.0))
    axes.grid(True, color="#e9ebee", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#5b6470", length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def plain_numbers(axis: Axis, subs: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """A log axis whose ticks are these times powers of ten, written as numbers: 0.05."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ticks(counts: list[int]) -> list[float]:
    """As many of the counts as fit on a log axis without touching."""
    out: list[float] = []
    for count in counts:
        if not out or count / out[-1] >= 1.1:
            out.append(float(count))
    return out


def _labels(axes: Axes, ends: Sequence[tuple[Curve, str, bool]]) -> None:
    """Names to the right of the axes, near the height of each curve's end, pushed apart, joined to it by a hairline."""
    low, high = (math.log(v) for v in axes.get_ylim())
    heights = [min(max((math.log(curve.points[-1][1]) - low) / (high - low), 0.0), 1.0) for curve, _, _ in ends]
    places = spread(heights, 0.052)
    for (curve, color, learned), place in zip(ends, places, strict=True):
        x, y = curve.points[-1]
        axes.annotate(
            curve.group,
            # One that never comes down here is named at the top; a hairline from beyond the axes would shrink them.
            xy=(min(x, axes.get_xlim()[1]), min(y, axes.get_ylim()[1])),
            xytext=(1.035, place),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontsize=10.5 if learned else 9.5,
            fontweight="bold" if learned else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "lw": 0.7,
                "alpha": 0.45,
                "shrinkA": 1,
                "shrinkB": 5,
                "relpos": (0, 0.5),
            },
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Places in [0, 1] in the order of `heights`, at least `gap` apart, as near to them as a few passes bring them."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    places = [heights[i] for i in order]
    for _ in range(200):
        for i in range(len(places) - 1):
            lack = gap - (places[i + 1] - places[i])
            if lack > 1e-9:
                places[i], places[i + 1] = places[i] - lack / 2, places[i + 1] + lack / 2
        if places:
            # Against the walls from both sides, so that the last word is a height inside the axes.
            places[0], places[-1] = max(places[0], 0.0), min(places[-1], 1.0)
    out = [0.0] * len(heights)
    for place, i in zip(places, order, strict=True):
        out[i] = place
    return out
