"""The pictures of docs/stepmix.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ...evaluation.pareto import HANDMADE, INK, LEARNED, PEER, save_figure
from ..learned_results import contents
from .cells import BY_BONUS, BY_DATA, BY_GAP, BY_LENGTH, BY_STATES, DIGITS, EPISODES, middle
from .digits import DECISIONS, STEPS
from .page import NAMES, Files, relative

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"stepmix": LEARNED[0], "epsmix": LEARNED[1], "cumulative": LEARNED[2], "optimism": PEER, "baseline": HANDMADE}
SMOOTHED = 8  # batches, of what changes with each plan
STYLES = {"stepmix": "-", "epsmix": "--", "cumulative": "-.", "optimism": "-", "baseline": ":"}


def drawn(results: Path, docs: Path) -> Iterator[Path]:
    """Writes the pictures whose cells are all there."""
    files = contents(results)
    pictures = {
        "episodes": (EPISODES, episodes),
        "gap": ([c for rows in BY_GAP.values() for row in rows.values() for c in row.values()], gaps),
        "bonus": ([c for row in BY_BONUS.values() for c in row.values()], bonuses),
        "sizes": ([c for rows in (BY_LENGTH, BY_STATES) for row in rows.values() for c in row.values()], sizes),
        "offline": ([c for row in BY_DATA.values() for c in row.values()], offline),
        "digits": (DIGITS, digits),
    }
    for name, (cells, draw) in pictures.items():
        if all(cell.path in files for cell in cells):
            yield save_figure(draw(files), docs / f"stepmix_{name}.png")


def episodes(files: Files) -> Figure:
    """Return, cumulative violations and mixing over episodes; j and rho of one trial."""
    title = "Twenty random processes, proved Hoeffding bonus, floor at 80 % of the baseline's value"
    figure, axes = _figure(2, 2, (10.5, 7.2), title)
    (value, broken), (mixing, one) = axes
    for cell in EPISODES:
        found, line = files[cell.path], {"color": COLORS[cell.method], "ls": STYLES[cell.method], "lw": 1.8}
        value.plot(found["at"], found["values"], label=NAMES[cell.method], **line)
        broken.plot(found["at"], found["cumulated"], **line)
        mixing.plot(found["at"], found["mixing"], **line)
    first = files[EPISODES[0].path]
    floor = fmean(f / b for f, b in zip(first["floor"], first["best"], strict=True))
    value.axhline(floor, color=INK, lw=1, ls=(0, (4, 3)))
    value.text(11, floor, "floor", color=INK, va="bottom", fontsize=9)
    _label(value, "expected return, of the best one", "episode")
    _label(broken, "episodes below the floor so far, a trial", "episode")
    _label(mixing, "share of steps that are optimistic", "episode")
    value.legend(frameon=False, fontsize=9, loc="center left")
    for name, color in (("start", LEARNED[0]), ("rho", PEER)):
        text = "j, first optimistic step" if name == "start" else "ρ, share in step j − 1"
        one.step(first["at"], first["one"][name], where="post", color=color, lw=1.8, label=text)
    one.set_yticks(range(first["settings"]["steps"] + 1))
    _label(one, "j (steps) and ρ (0 to 1) in one trial", "episode")
    one.legend(frameon=False, fontsize=9, loc="center left")
    for panel in axes.flat:
        panel.set_xscale("log")
    return figure


def gaps(files: Files) -> Figure:
    """Regret and violations by how far the floor lies below the baseline."""
    figure, axes = _figure(2, len(BY_GAP), (10.5, 7.2), "How far the floor lies below the baseline's value")
    for column, (bonus, by_gap) in enumerate(BY_GAP.items()):
        places = range(len(by_gap))
        for method in next(iter(by_gap.values())):
            found = [files[cells[method].path] for cells in by_gap.values()]
            line = {"color": COLORS[method], "ls": STYLES[method], "lw": 1.8, "marker": "o", "ms": 5}
            axes[0, column].plot(places, [fmean(f["regret"]) for f in found], label=NAMES[method], **line)
            axes[1, column].plot(places, [fmean(f["violations"]) for f in found], **line)
        axes[0, column].set_title(f"bonus: {bonus}", loc="left", fontsize=10, color=INK)
        for row, text in enumerate(["regret of 20,000 episodes", "episodes below the floor, a trial"]):
            axes[row, column].set_xticks([*places], [f"{100 * gap:g} %" for gap in by_gap])
            axes[row, column].set_ylim(bottom=-0.03 * axes[row, column].get_ylim()[1])
            _label(axes[row, column], text, "gap")
    axes[0, 0].legend(frameon=False, fontsize=9)
    return figure


def bonuses(files: Files) -> Figure:
    """When StepMix begins to mix and plays optimism alone, bonus by bonus."""
    figure, axes = _figure(1, 1, (9.0, 4.2), "StepMix, median trial: first mixing (hollow), optimism alone (full)")
    panel, names, end = axes[0, 0], [], EPISODES[0].episodes
    for place, (bonus, cells) in enumerate(reversed(BY_BONUS.items())):
        found = files[cells["stepmix"].path]
        begin, pure = (max(middle(found[name]), 1) for name in ("first_mixing", "first_pure"))  # on a log axis
        color = LEARNED[0] if bonus.proved else PEER
        panel.plot([min(begin, end), min(pure, end)], [place, place], color=color, lw=2, alpha=0.5)
        if begin < end:
            panel.plot([begin], [place], "o", color=color, mfc="white", ms=8)
        if pure < end:
            panel.plot([pure], [place], "o", color=color, ms=8)
        lost = fmean(found["violations"])
        panel.text(1.15 * end, place, f"{lost:.1f}" if lost else "0", va="center", color=INK, fontsize=9)
        names.append(f"{bonus}{' (proved)' if bonus.proved else ''}")
    panel.text(1.15 * end, len(names) - 0.35, "below the\nfloor", color=INK, fontsize=8.5, va="bottom")
    panel.set_yticks(range(len(names)), names)
    panel.set_xscale("log")
    panel.set_xlim(1, end)
    panel.set_ylim(-0.6, len(names) - 0.4)
    _label(panel, "", f"episode (of {end:,})")
    return figure


def sizes(files: Files) -> Figure:
    """Regret as a share of the baseline's by the number of steps and of states."""
    figure, axes = _figure(1, 2, (10.5, 4.0), "Longer episodes, more states: bonus both, simple; gap 20 %")
    for panel, by, name in zip(axes[0], (BY_LENGTH, BY_STATES), ("steps H (S = 5)", "states S (H = 3)"), strict=True):
        for method in ("stepmix", "epsmix"):
            shares = [100 * relative(files[cells[method].path]) for cells in by.values()]
            line = {"color": COLORS[method], "ls": STYLES[method], "label": NAMES[method], "lw": 1.8}
            panel.plot(range(len(by)), shares, "o", **line)
        panel.axhline(100, color=HANDMADE, lw=1.2, ls=":")
        panel.set_xticks(range(len(by)), [str(size) for size in by])
        panel.set_ylim(0, 1.08 * panel.get_ylim()[1])
        _label(panel, "regret, % of the baseline's", name)
    axes[0, 0].legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def offline(files: Files) -> Figure:
    """What is certified and what is earned by the size of the data."""
    figure, axes = _figure(1, 1, (8.2, 4.4), "A baseline from episodes of a uniform policy")
    panel = axes[0, 0]
    for (bonus, cells), color in zip(BY_DATA.items(), (LEARNED[0], PEER), strict=True):
        for name, style in (("value", "-"), ("lower", "--")):
            curve = [100 * fmean(files[cell.path][name]) for cell in cells.values()]
            what = "earned" if name == "value" else "certified"
            panel.plot([*cells], curve, "o", ls=style, color=color, lw=1.8, ms=5, label=f"{what}; {bonus}")
    panel.set_xscale("log")
    panel.set_ylim(0, 103)
    _label(panel, "% of the best policy's value", "offline episodes")
    panel.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def digits(files: Files) -> Figure:
    """What the tuner played in real runs."""
    title = "The tuner on digits-exact: Euler, 12 steps, 4 decisions; judged on the measured process"
    figure, axes = _figure(1, 3, (12.5, 4.2), title)
    value, mixing, cost = axes[0]
    for cell, color in zip(DIGITS[1:], (LEARNED[0], PEER), strict=True):
        run = files[cell.path]
        course: Sequence[Mapping[str, Any]] = run["course"]
        at = [(i + 1) * run['batch'] / 1000 for i in range(len(course))]
        value.plot(at, [x["value"] for x in course], color=color, lw=1.8, label=f"earned; {run['bonus']}")
        value.plot(at, [x["lower"] for x in course], color=color, lw=1.4, ls="--", label="its lower bound")
        shares = [(DECISIONS - x["start"] + (x["rho"] if x["start"] else 0)) / DECISIONS for x in course]
        mixing.plot(at, shares, color=color, lw=1.8)
        costs = [STEPS * x["cost"] for x in course]
        means = [fmean(costs[max(i - SMOOTHED + 1, 0) : i + 1]) for i in range(len(costs))]
        cost.plot(at, means, color=color, lw=1.8)
    floor = files[DIGITS[1].path]["floor"]
    value.axhline(floor, color=INK, lw=1, ls=(0, (4, 3)))
    value.text(value.get_xlim()[1], floor - 0.006, "floor", color=INK, ha="right", va="top", fontsize=9)
    value.set_ylim(0.45, None)
    value.legend(frameon=False, fontsize=8.5, loc="lower right")
    _label(value, "reward of a run, 0 to 1", "thousand runs")
    _label(mixing, "share of decisions that are optimistic", "thousand runs")
    _label(cost, f"network evaluations a run, mean of {SMOOTHED} batches", "thousand runs")
    return figure


def _figure(rows: int, columns: int, size: tuple[float, float], title: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.05), facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    for panel in axes.flat:
        panel.grid(True, color="#e9ebee", lw=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(colors="#5b6470", length=0)
        for side in panel.spines.values():
            side.set_visible(False)
    return figure, axes


def _label(panel: Axes, y: str, x: str) -> None:
    panel.set_ylabel(y, color=INK)
    panel.set_xlabel(x, color=INK)


