"""Figures of an inspection, drawn by matplotlib without a display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..solvers.table import Table
from .course import ANCHOR, UPDATE
from .inspection import PICTURES, Inspection, Shown
from .inspection_numbers import blocks_of
from .inspection_text import percent
from .pareto import INK, plain_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEARNED, EXACT, FAN, PALE, GREY = "#c8102e", "#2166ac", "#e8731a", "#cdd2d9", "#5b6470"
PALETTE = ("#e8731a", "#8e2f8f", "#b8860b", "#1b7837", "#d4507a", "#4d4d4d")


def figures_of(i: Inspection) -> dict[str, Figure]:
    """All figures, by name."""
    out = {"error": error(i), "directions": directions(i), "shape": shape(i), "end": end(i)}
    if i.table is not None:
        out["table"] = table(i)
    for shown in i.shown:
        out[f"projection_seed_{shown.seed}"] = projection(i, shown)
        if shown.pictures is not None:
            out[f"trajectory_seed_{shown.seed}"] = trajectory(i, shown, shown.pictures)
    return out


def pixels(figure: Figure, dpi: int = 100) -> Tensor:
    """uint8 (H, W, 3) of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3].copy())


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    return figure


def _steps(axes: Axes, count: int, label: str) -> None:
    axes.set_xticks(range(count))
    axes.set_xlabel(label, color=INK)
    axes.grid(color="#eceef1", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _spread(axes: Axes, where: list[float], values: Tensor, color: str, label: str) -> None:
    """Mean over samples, and the band of 90 % of them."""
    low, middle, high = (values.quantile(q, 1).numpy() for q in (0.05, 0.5, 0.95))
    axes.fill_between(where, low, high, color=color, alpha=0.15, lw=0, label="5 to 95 % of samples")
    axes.plot(where, middle, "--", color=color, lw=1.2, label="median")
    axes.plot(where, values.mean(1).numpy(), "-o", color=color, lw=2.2, ms=5, label=label)


def error(i: Inspection) -> Figure:
    """Error of every state, and of every step alone, over sigma."""
    figure = _figure(11, 4.6, f"Distance to the converged trajectory: {i.solver} on {i.model}")
    left, right = figure.subplots(1, 2)
    sigmas = i.sigmas[1:].tolist()
    for axes, values, color, what in ((left, i.error[1:], LEARNED, "Each state"), (right, i.local, EXACT, "Each step")):
        _spread(axes, sigmas, values.clamp(min=1e-12), color, "mean")
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_numbers(axes.xaxis, (1.0,))
        plain_numbers(axes.yaxis)
        axes.invert_xaxis()
        axes.grid(color="#eceef1", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        own = ", after all steps so far" if axes is left else " alone, begun on the converged trajectory"
        axes.set_title(what + own, fontsize=10.5, color=INK)
        axes.set_xlabel("sigma where the step ends (noise at the left)", color=INK)
        axes.set_ylabel("RMSE, units of the state", color=INK)
        axes.legend(fontsize=8.5, frameon=False)
    return figure


def directions(i: Inspection) -> Figure:
    """Angles to the converged trajectory's mean slope over each step."""
    figure = _figure(9, 4.6, f"Directions of {i.solver}, against the true mean slope of each step")
    axes = figure.subplots()
    steps = np.arange(i.num_steps)
    points = [name for name in i.directions if name not in (ANCHOR, UPDATE)]
    colors = {ANCHOR: EXACT, UPDATE: LEARNED} | {p: PALETTE[k % len(PALETTE)] for k, p in enumerate(points)}
    width = 0.5 / len(i.directions)
    for k, name in enumerate(i.directions):
        values = i.angles[:, i.directions.index(name)].numpy()
        there = ~np.isnan(values).all(1)
        at = steps[there] + (k - (len(i.directions) - 1) / 2) * width
        low, high = (np.quantile(values[there], q, axis=1) for q in (0.05, 0.95))
        axes.vlines(at, low, high, color=colors[name], lw=2, alpha=0.4)
        axes.plot(at, values[there].mean(1), "D" if name == UPDATE else "o", color=colors[name], ms=6, label=name)
    axes.set_ylim(bottom=0)
    _steps(axes, i.num_steps, "step (0 is at the noise)")
    axes.set_ylabel("angle, degrees", color=INK)
    axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="mean; bar: 5 to 95 %")
    return figure


def shape(i: Inspection) -> Figure:
    """How far the ODE's slope turns in every step, and how many dimensions a trajectory has."""
    figure = _figure(10, 4.2, f"Shape of the converged trajectories of {i.model}")
    left, right = figure.subplots(1, 2)
    _spread(left, list(range(i.num_steps)), i.curvature, EXACT, "mean")
    _steps(left, i.num_steps, "step (0 is at the noise)")
    left.set_ylim(bottom=0)
    left.set_ylabel("turn of the slope over the step, degrees", color=INK)
    left.legend(fontsize=8.5, frameon=False)
    missing = (1 - i.explained).clamp(min=1e-12).numpy()
    count = np.arange(1, missing.shape[1] + 1)
    low, high = (np.quantile(missing, q, axis=0) for q in (0.05, 0.95))
    right.vlines(count, low, high, color=EXACT, lw=6, alpha=0.25, label="5 to 95 % of samples")
    right.plot(count, missing.mean(0), "o", color=EXACT, ms=8, label="mean")
    for k, share in zip(count, i.explained.mean(0).tolist(), strict=True):
        right.annotate(percent(share), (float(k), float(missing.mean(0)[k - 1])), (12, 0), textcoords="offset points",
                       va="center", fontsize=9, color=INK)  # fmt: skip
    right.set_yscale("log")
    right.set_xlim(0.6, len(count) + 0.9)
    right.set_xticks(count)
    right.grid(color="#eceef1", zorder=0)
    right.spines[["top", "right"]].set_visible(False)
    right.set_xlabel("principal components of a trajectory", color=INK)
    right.set_ylabel("share of variance beyond them", color=INK)
    right.set_title("written beside: share explained", fontsize=10, color=GREY)
    right.legend(fontsize=8.5, frameon=False, loc="lower left")
    return figure


def end(i: Inspection) -> Figure:
    """Errors of the end points, element by element and sample by sample."""
    figure = _figure(10, 4.2, f"Errors at the end: {i.solver} on {i.model}, RMSE {i.metrics()['rmse']:.4g}")
    left, right = figure.subplots(1, 2)
    left.hist(i.differences.numpy(), bins=81, color=EXACT)
    left.set_yscale("log")
    left.set_xlabel("difference to the converged end, units of the state", color=INK)
    left.set_ylabel("elements", color=INK)
    left.set_title("All elements of all samples", fontsize=10.5, color=INK)
    ends = i.error[-1].clamp(min=1e-12).numpy()
    low, high = ends.min(), max(ends.max(), ends.min() * 1.001)
    right.hist(ends, bins=[*np.geomspace(low, high, 31)], color=LEARNED)
    right.set_xscale("log")
    plain_numbers(right.xaxis)
    right.yaxis.get_major_locator().set_params(integer=True)
    right.axvline(float(np.median(ends)), color=INK, ls="--", lw=1.2, label=f"median {np.median(ends):.3g}")
    right.set_xlabel("RMSE of a sample, units of the state", color=INK)
    right.set_ylabel("samples", color=INK)
    right.set_title(f"{i.samples} samples", fontsize=10.5, color=INK)
    right.legend(fontsize=9, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def projection(i: Inspection, shown: Shown) -> Figure:
    """One sample's trajectories along its principal components, with the points where slopes were asked for."""
    figure = _figure(15.5, 5.0, f"Seed {shown.seed} of {i.model}: {i.solver} beside the converged trajectory")
    panels: list[Any] = [figure.add_subplot(1, 3, k + 1, projection="3d" if k == 2 else None) for k in range(3)]
    for axes, dims in zip(panels, ([0, 1], [1, 2], [0, 1, 2]), strict=True):
        _paths(axes, i, shown, dims)
    one, two, three = map(percent, shown.explained.tolist())
    names = f"component 1 ({one})", f"component 2 ({two} with 1)", f"component 3 ({three} with 1 and 2)"
    for k, axes in enumerate(panels[:2]):
        axes.set_xlabel(names[k], color=INK)
        axes.set_ylabel(names[k + 1], color=INK)
        axes.grid(color="#eceef1", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    for n, (x, y) in enumerate(shown.learned[:, 1:].tolist()):
        panels[1].annotate(str(n), (x, y), (5, 5), textcoords="offset points", fontsize=8.5, color=LEARNED)
    panels[0].legend(fontsize=8.5, frameon=False)
    panels[0].set_title("percent: of the variance; axes are scaled apart", fontsize=9.5, color=GREY)
    panels[1].set_title("numbers: states of the solver, 0 is noise", fontsize=9.5, color=GREY)
    space = panels[2]
    space.locator_params(nbins=4)
    space.tick_params(labelsize=8)
    for k, axis in enumerate("xyz"):
        getattr(space, f"set_{axis}label")(f"component {k + 1}", labelpad=6, color=INK)
    space.set_box_aspect(None, zoom=0.82)
    return figure


def _paths(axes: Any, i: Inspection, shown: Shown, dims: list[int]) -> None:  # noqa: ANN401 - axes of two kinds
    every = (len(shown.exact) - 1) // i.num_steps
    axes.plot(*shown.exact[:, dims].T.numpy(), "-", color=EXACT, lw=1.6, label="converged")
    axes.plot(*shown.exact[::every, dims].T.numpy(), "o", color=EXACT, ms=3.5)
    axes.plot(*shown.learned[:, dims].T.numpy(), "--o", color=LEARNED, lw=1.3, ms=4, label=i.solver)
    anchors = [k for k, place in enumerate(i.places) if place.name == ANCHOR]
    fan = [k for k, place in enumerate(i.places) if place.name != ANCHOR]
    hollow = {"marker": "s", "s": 36, "facecolors": "none", "edgecolors": INK, "linewidths": 1.1}
    filled = {"marker": "^", "s": 46, "color": FAN}
    for members, style, label in ((anchors, hollow, "anchor asked"), (fan, filled, "look-ahead point asked")):
        if members:
            axes.scatter(*shown.points[members][:, dims].T.numpy(), zorder=5, label=label, **style)


def trajectory(i: Inspection, shown: Shown, pictures: Tensor) -> Figure:
    """One sample's states and denoised predictions, learned and converged, from noise to the end."""
    count, high, wide = pictures.shape[1:4]
    figure = _figure(1.4 + 1.05 * count * wide / max(high, wide), 5.0, f"Seed {shown.seed}: {i.solver} on {i.model}")
    axes = figure.subplots()
    gap = max(1, round(max(high, wide) / 12))
    sheet = torch.full((4 * (high + gap), count * (wide + gap), 3), 255, dtype=torch.uint8)
    for row, column in np.ndindex(4, count):
        top, left = row * (high + gap), column * (wide + gap)
        sheet[top : top + high, left : left + wide] = pictures[row, column]
    axes.imshow(sheet[: -gap, : -gap].numpy(), interpolation="nearest")
    axes.set_xticks([k * (wide + gap) + wide / 2 - 0.5 for k in range(count)], [f"{s:.3g}" for s in i.sigmas.tolist()])
    axes.set_yticks(
        [k * (high + gap) + high / 2 - 0.5 for k in range(4)], [name.replace(" ", "\n") for name in PICTURES]
    )
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    figure.supxlabel("above: sigma; states are scaled to unit size", fontsize=9, color=GREY)
    return figure


def table(i: Inspection) -> Figure:
    """The heat map of an inspected table."""
    assert i.table is not None, "a hand-made solver has no table"
    return heat_map(i.table, i.solver)


def heat_map(table: Table, name: str) -> Figure:
    """A table's numbers as heat maps, a row for each step."""
    from matplotlib.colors import TwoSlopeNorm

    blocks = blocks_of(table)
    widths = [max(1.4, 0.55 * block.values.shape[1]) for block in blocks]
    figure = _figure(1.2 + 0.95 * sum(widths), 1.9 + 0.42 * table.num_steps, f"The numbers of {name}")
    row = figure.subplots(1, len(blocks), squeeze=False, width_ratios=widths)[0]
    for axes, block in zip(row, blocks, strict=True):
        reach = max(1e-9, float(np.nanmax(np.abs(block.values - block.centre), initial=0.0)))
        norm = TwoSlopeNorm(block.centre, block.centre - reach, block.centre + reach)
        axes.imshow(block.values, cmap="RdBu_r", norm=norm, aspect="auto")
        small = 6.5 if block.values.shape[1] > 4 else 8
        for (n, k), value in np.ndenumerate(block.values):
            if not np.isnan(value):
                dark = abs(value - block.centre) > 0.6 * reach
                axes.text(k, n, f"{value:.3g}" if small > 7 else f"{value:.2f}", ha="center", va="center",
                          fontsize=small, color="white" if dark else INK)  # fmt: skip
        axes.set_title(block.title, fontsize=9.5, color=INK)
        axes.set_xticks(range(block.values.shape[1]), block.columns, fontsize=7.5, rotation=90 if small < 7 else 0)
        axes.set_yticks(range(table.num_steps) if axes is row[0] else [])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    row[0].set_ylabel("step", color=INK)
    return figure
