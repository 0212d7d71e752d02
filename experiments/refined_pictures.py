"""The pictures of `bench_refine`: reward against rollouts, and the same samples of several solvers."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..denoisers.shapes_verifier import verify
from ..evaluation.handmade import handmade
from ..evaluation.pareto import HANDMADE, INK, LEARNED, save_figure, spread
from ..runs.pictures import to_bytes
from ..solvers.table_json import loads
from ..solvers.walk import Rule
from .refined_efficiency import Course
from .refined_results import Shown
from .refined_scores import Judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 10
WRONG = "#c0392b"


def draw_efficiency(courses: Sequence[Course], path: Path) -> Path:
    """Held-out gain of the reward against rollouts, mean of the training seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 4.8), layout="constrained", facecolor="white")
    axes = figure.subplots()
    kinds = list(dict.fromkeys(course.name.replace("-shared", "") for course in courses))
    ends = []
    for course in courses:
        color = LEARNED[kinds.index(course.name.replace("-shared", "")) % len(LEARNED)]
        rollouts, gains = (0, *course.rollouts), torch.nn.functional.pad(course.gains, (1, 0))
        style = "-" if "-shared" in course.name else "--"
        axes.plot(rollouts, gains.mean(0), style, color=color, lw=2)
        ends.append((course.label, float(gains[:, -1].mean()), color))
    axes.set_xlim(0, max(courses[0].rollouts))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -high / 2), high)  # a dip at the start would flatten the rest
    _named(axes, ends)
    axes.axhline(0, color=HANDMADE, lw=0.8)
    axes.grid(True, color="#e9ebee", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#5b6470", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("rollouts", color=INK)
    axes.set_ylabel("gain of the graded score on held-out prompts", color=INK)
    title = f"Reward against rollouts on shapes-exact, mean of {len(courses[0].gains)} training seeds"
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    return save_figure(figure, path)


def _named(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Names to the right of the axes near where each curve ends."""
    low, high = axes.get_ylim()
    places = spread([(value - low) / (high - low) for _, value, _ in ends], 0.06)
    for (name, _, color), place in zip(ends, places, strict=True):
        axes.text(1.015, place, name, transform=axes.transAxes, va="center", color=color, fontsize=9.5)


def draw_samples(judge: Judge, shown: Shown, path: Path) -> Path:
    """The same prompts and noise, solver by solver: the first samples that not all four of them get right, and those
    framed that do not show what they were asked for.
    """
    from matplotlib.figure import Figure

    which = _differing([*(one["scores"]["all"] for one in (shown.handmade, shown.distilled, shown.refined))])
    texts = judge.task.texts([judge.draws.conditions[i] for i in which])
    rows = {name: _pictures(judge, rule, sigmas, which) for name, (rule, sigmas) in _rules(judge, shown).items()}
    figure = Figure(figsize=(1.25 * len(which) + 1.4, 1.3 * len(rows) + 0.9), layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), len(which), squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        right = verify(images, texts).all
        for axes, picture, good in zip(line, to_bytes(images), right, strict=True):
            axes.imshow(picture.numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_color("white" if good else WRONG)
                side.set_linewidth(2.5)
        line[0].set_ylabel(name, color=INK, fontsize=9.5)
    for axes, text in zip(grid[0], texts, strict=True):
        axes.set_title("\n".join(textwrap.wrap(text, 14)), fontsize=7.5, color="#5b6470")
    figure.suptitle(f"{shown.subject}, {shown.calls} calls: same prompts, same noise; red: not what was asked for",
                    x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)  # fmt: skip
    return save_figure(figure, path)


def _differing(scores: Sequence[Sequence[float]]) -> list[int]:
    """The first samples of which solvers make different things; any, where there are too few."""
    different = [i for i, values in enumerate(zip(*scores, strict=True)) if len(set(values)) > 1]
    return sorted([*different, *(i for i in range(len(scores[0])) if i not in different)][:SAMPLES])


def _rules(judge: Judge, shown: Shown) -> Mapping[str, tuple[Rule, Tensor]]:
    """By what the rows are called."""
    best: Mapping[str, Any] = shown.handmade
    solver = next(one for one in handmade(judge.model.path) if one.name == best["solver"])
    sigmas = judge.schedules[best["schedule"]](solver.steps(shown.calls))
    tables = {name: loads(json.dumps(cell["table"])) for name, cell in
              (("distilled", shown.distilled), ("refined", shown.refined))}  # fmt: skip
    return {
        f"{judge.subject.reference[2]} steps": judge.reference(),
        best["group"]: (solver.rule(sigmas), sigmas),
        **{name: (table.rule(), torch.tensor(table.sigmas)) for name, table in tables.items()},
    }


def _pictures(judge: Judge, rule: Rule, sigmas: Tensor, which: Sequence[int]) -> Tensor:
    draws = judge.draws
    chosen = type(draws)(tuple(draws.conditions[i] for i in which), tuple(draws.noises[i] for i in which))
    return torch.cat([part.images for part in judge.rollouts(rule, sigmas, chosen)]).clamp(0, 1)
