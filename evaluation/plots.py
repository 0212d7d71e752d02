"""Pictures: sample grids, labelled grids side by side, and what a trajectory looks like on its way."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..denoisers.protocol import Denoiser, Model
from ..formats.files import write_atomically
from ..runs.pictures import GAP, PAPER, tile, to_bytes
from ..solvers.exact import converged
from ..solvers.solve import trajectory
from ..solvers.walk import Rule
from .pareto import HANDMADE, INK, LEARNED, log_axes, save_figure, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image



def save_grid(images: Tensor, path: Path, columns: int = 8, titles: Sequence[str] | None = None) -> Path:
    """A PNG of pictures (B, C, H, W) in [0, 1]; with titles, one above each column."""
    sheet = tile(images, columns)
    picture = _image(sheet)
    if titles:
        across = min(columns, len(images))
        if len(titles) != across:
            raise ValueError(f"{len(titles)} titles for {across} columns: give one for each")
        cell = (sheet.shape[1] - GAP) / across
        picture = _headed(picture, [(title, GAP / 2 + (i + 0.5) * cell, cell) for i, title in enumerate(titles)])
    return _save(picture, path)


def save_side_by_side(panels: Mapping[str, Tensor], path: Path, columns: int = 4) -> Path:
    """Grids of the same samples next to each other, each under its name: teacher, hand-made, learned."""
    if not panels:
        raise ValueError("there is no panel to show: give at least one")
    sheets = [tile(images, columns) for images in panels.values()]
    height = max(len(sheet) for sheet in sheets)
    space = 4 * GAP
    whole, marks, left = [], [], 0
    for name, sheet in zip(panels, sheets, strict=True):
        if whole:
            whole.append(torch.full((height, space, 3), PAPER, dtype=torch.uint8))
            left += space
        below = torch.full((height - len(sheet), sheet.shape[1], 3), PAPER, dtype=torch.uint8)
        whole.append(torch.cat([sheet, below]))
        marks.append((name, left + sheet.shape[1] / 2, sheet.shape[1]))
        left += sheet.shape[1]
    return _save(_headed(_image(torch.cat(whole, 1)), marks), path)


def _image(sheet: Tensor) -> Image:
    from PIL import Image

    return Image.fromarray(sheet.numpy())


def _headed(picture: Image, marks: Sequence[tuple[str, float, float]]) -> Image:
    """The picture under a strip of centred words (text, middle, room), all of one size that fits the tightest."""
    from PIL import Image, ImageDraw, ImageFont

    size = 20
    pen = ImageDraw.Draw(picture)
    while size > 8 and any(pen.textlength(t, ImageFont.load_default(size)) > room - 2 for t, _, room in marks):
        size -= 1
    font = ImageFont.load_default(size)
    out = Image.new("RGB", (picture.width, picture.height + size + 14), "white")
    out.paste(picture, (0, size + 14))
    pen = ImageDraw.Draw(out)
    for text, middle, _ in marks:
        pen.text((middle, (size + 16) / 2), text, fill=INK, font=font, anchor="mm")
    return out


def _save(picture: Image, path: Path) -> Path:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
    return path


@dataclass(frozen=True)
class Traced:
    """A solver whose trajectory is drawn.

    Args:
        sigmas: (N+1,), those of the table or schedule.
        learned: drawn in colour.
    """

    name: str
    rule: Rule
    sigmas: Tensor
    learned: bool = False


@dataclass(frozen=True)
class Trace:
    """Its states (N+1, B, *S) and their RMSE to the exact trajectory at the same sigmas."""

    states: Tensor
    errors: list[float]


def trace(solver: Traced, denoiser: Denoiser, noise: Tensor, tolerance: float = 1e-5) -> Trace:
    """Solves and compares with the exact trajectory at the solver's own sigmas."""
    with torch.no_grad():
        states = torch.stack(list(trajectory(solver.rule, denoiser, noise, solver.sigmas)))
        exact = converged(denoiser, noise, solver.sigmas, tolerance, tolerance)
    return Trace(states, (states - exact).double().flatten(1).square().mean(1).sqrt().tolist())


def trajectory_plot(
    model: Model, solvers: Sequence[Traced], noise: Tensor, seeds: Sequence[int], path: Path, samples: int = 2
) -> Path:
    """One PNG: for some samples, strips of what each solver's states would be without their noise, D(x, sigma), over
    sigma, the exact flow on top; below, each solver's RMSE to the exact trajectory along sigma.

    Args:
        solvers: teacher, hand-made, learned; at most a handful, with at most a dozen steps.
        noise: unit variance, (B, *S), of `seeds`; all of it enters the error, the first `samples` are drawn.
    """
    from matplotlib.figure import Figure

    denoiser, few = model.for_seeds(seeds), model.for_seeds(seeds[:samples])
    traces = [trace(solver, denoiser, noise) for solver in solvers]
    grid = max(solvers, key=lambda solver: len(solver.sigmas)).sigmas
    with torch.no_grad():
        exact = converged(denoiser, noise, grid, 1e-5, 1e-5)
        strips = [("exact", _views(model, few, exact[:, :samples], grid), grid)]
        for solver, course in zip(solvers, traces, strict=True):
            strips.append((solver.name, _views(model, few, course.states[:, :samples], solver.sigmas), solver.sigmas))
    width = max(len(sigmas) for _, _, sigmas in strips)
    rows = samples * len(strips)
    figure = Figure(figsize=(1.6 + 0.95 * width, 0.98 * rows + 4.4), layout="constrained", facecolor="white")
    top, bottom = cast(Any, figure.subfigures(2, 1, height_ratios=[0.98 * rows + 0.5, 3.9]))
    _strips(top.subplots(rows, width, squeeze=False), strips, samples)
    _errors(bottom.subplots(), solvers, traces)
    top.suptitle(f"What the state is on its way to, {model.name}", fontsize=13, fontweight="bold", color=INK)
    return save_figure(figure, path)


def _views(model: Model, denoiser: Denoiser, states: Tensor, sigmas: Tensor) -> Tensor:
    """uint8 (N+1, samples, H, W, 3): the denoised estimate at each state, and the last state itself."""
    out = [model.decode(denoiser(x, s.to(x.device))) for x, s in zip(states[:-1], sigmas[:-1], strict=True)]
    return torch.stack([to_bytes(picture) for picture in [*out, model.decode(states[-1])]])


def _strips(axes: Sequence[Sequence[Axes]], strips: Sequence[tuple[str, Tensor, Tensor]], samples: int) -> None:
    for i in range(samples):
        for j, (name, views, sigmas) in enumerate(strips):
            row = axes[i * len(strips) + j]
            for cell in row:
                cell.set_axis_off()
            for n in range(len(sigmas)):
                cell = row[n if n < len(sigmas) - 1 else -1]  # ends stand below each other
                cell.imshow(views[n, i].numpy(), interpolation="nearest")
                cell.set_title(f"{float(sigmas[n]):.3g}", fontsize=7.5, color="#5b6470", pad=2)
            row[0].text(-0.12, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=9.5, color=INK)


def _errors(axes: Axes, solvers: Sequence[Traced], traces: Sequence[Trace]) -> None:
    from matplotlib.ticker import LogLocator

    palette = iter(LEARNED)
    colors = [next(palette) if solver.learned else HANDMADE for solver in solvers]
    for solver, course, color in zip(solvers, traces, colors, strict=True):
        thick, dot = (2.6, 6.0) if solver.learned else (1.5, 4.0)
        axes.plot(solver.sigmas[1:].tolist(), course.errors[1:], "-o", color=color, lw=thick, ms=dot)
    log_axes(axes)
    axes.xaxis.set_major_locator(LogLocator())  # powers of ten: sigma spans many
    axes.invert_xaxis()
    low, high = (math.log(v) for v in axes.get_ylim())
    places = spread([(math.log(max(t.errors[-1], 1e-12)) - low) / (high - low) for t in traces], 0.07)
    for solver, place, color in zip(solvers, places, colors, strict=True):
        weight = "bold" if solver.learned else "normal"
        axes.text(1.015, place, solver.name, transform=axes.transAxes, va="center", fontweight=weight,
                  color=color if solver.learned else "#5b6470")  # fmt: skip
    axes.set_xlabel("sigma (noise level), from start to end", color=INK)
    axes.set_ylabel("RMSE to the exact trajectory", color=INK)
