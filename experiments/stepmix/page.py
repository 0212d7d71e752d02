"""What docs/stepmix.md shows of what has been measured so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..learned_results import contents
from ..markdown import MISSING, markdown_table, measured_in
from .cells import BY_BONUS, BY_DATA, BY_GAP, BY_LENGTH, BY_STATES, DIGITS, EPISODES, Cell, middle

FOLDER = Path(__file__).resolve().parent.parent / "results" / "stepmix"
NAMES = {
    "stepmix": "StepMix", "epsmix": "EpsMix", "cumulative": "cumulative constraint", "optimism": "UCB-VI",
    "baseline": "baseline only",
}  # fmt: skip
Files = Mapping[str, Any]


def episodes(files: Files) -> str:
    """All methods at a gap of a fifth."""
    rows = []
    for cell in (cell for cell in EPISODES if cell.path in files):
        found = files[cell.path]
        half = fmean(found["regret_half"])
        rows.append([
            NAMES[cell.method], broken(found), f"{fmean(found['regret']):.0f}",
            f"{fmean(found['regret']) / half:.2f}" if half else "",
            when(found["first_mixing"]), when(found["first_pure"]),
        ])  # fmt: skip
    head = ["method", "episodes below the floor", "regret", "times that of half the episodes", "first mixing",
            "purely optimistic"]  # fmt: skip
    return table(head, rows, files, EPISODES)


def gaps(files: Files) -> str:
    """Violations and regret by gap."""
    rows, used = [], []
    for bonus, by_gap in BY_GAP.items():
        for gap, cells in by_gap.items():
            if all(cell.path in files for cell in cells.values()):
                used += cells.values()
                shown = [f"{fmean(files[c.path]['regret']):.0f} ({below(files[c.path])})" for c in cells.values()]
                rows.append([f"{bonus}, {100 * gap:g} %", *shown])
    methods = list(next(iter(next(iter(BY_GAP.values())).values())))
    return table(["bonus, gap", *(NAMES[m] for m in methods)], rows, files, used)


def bonuses(files: Files) -> str:
    """What the bonus is worth."""
    rows, used = [], []
    for bonus, cells in BY_BONUS.items():
        if all(cell.path in files for cell in cells.values()):
            used += cells.values()
            mixed, plain = (files[cells[m].path] for m in ("stepmix", "optimism"))
            rows.append([
                str(bonus), "yes" if bonus.proved else "no", below(mixed), f"{fmean(mixed['regret']):.0f}",
                when(mixed["first_mixing"]), when(mixed["first_pure"]), below(plain), f"{fmean(plain['regret']):.0f}",
            ])  # fmt: skip
    head = ["bonus", "proved", "StepMix: below the floor", "regret", "first mixing", "purely optimistic",
            "UCB-VI: below the floor", "regret"]  # fmt: skip
    return table(head, rows, files, used)


def sizes(files: Files) -> str:
    """Longer episodes and more states."""
    rows, used = [], []
    for name, by in (("H", BY_LENGTH), ("S", BY_STATES)):
        for size, cells in by.items():
            if all(cell.path in files for cell in cells.values()):
                used += cells.values()
                step, eps = (files[cells[m].path] for m in ("stepmix", "epsmix"))
                rows.append([
                    f"{name} = {size}", below(step), below(eps), f"{100 * relative(step):.0f} %",
                    f"{100 * relative(eps):.0f} %", when(step["first_mixing"]), when(step["first_pure"]),
                ])  # fmt: skip
    head = ["size", "StepMix: below the floor", "EpsMix", "StepMix: regret, of the baseline's", "EpsMix",
            "StepMix: first mixing", "purely optimistic"]  # fmt: skip
    return table(head, rows, files, used)


def offline(files: Files) -> str:
    """What offline data certify."""
    rows, used = [], []
    for bonus, cells in BY_DATA.items():
        for count, cell in cells.items():
            if cell.path in files:
                used.append(cell)
                found = files[cell.path]
                certified = f"{sum(found['certified'])} of {len(found['certified'])}"
                rows.append([f"{bonus}, {count:,}", f"{100 * fmean(found['lower']):.0f} %",
                             f"{100 * fmean(found['value']):.0f} %", certified])  # fmt: skip
    head = ["bonus, offline episodes", "certified, of V*", "earned, of V*", "certified at 80 % of V*"]
    return table(head, rows, files, used)


def tuned(files: Files) -> str:
    """Schedules on the digits."""
    process, *runs = (files.get(cell.path) for cell in DIGITS)
    if process is None:
        return MISSING
    names = {"full": "full throughout", "two": "two throughout (the baseline)", "one": "one throughout",
             "best": "best of the process"}  # fmt: skip
    rows = [scheduled(names[name], one) for name, one in process["schedules"].items()]
    rows += [[f"{steps} steps, nothing reused", f"{int(steps):.2f}", f"{rmse:.4f}", "", "", ""]
             for steps, rmse in process["plain"].items()]  # fmt: skip
    rows += [scheduled(f"tuned, {run['bonus']}", run["judged"], run["lower"]) for run in runs if run]
    head = ["schedule", "network evaluations", "RMSE to converged", "earned in runs", "on the process", "lower bound"]
    said = [
        f"With {run['bonus']}, floor {run['floor']:.4f}: {sum(x['value'] < run['floor'] for x in run['course'])} of "
        f"{len(run['course'])} batches of {run['batch']:,} runs were below it on the process, first mixing after "
        f"{runs_until(run, lambda x: x['rho'] > 0 or x['start'] < 4)} runs, purely optimistic after "
        f"{runs_until(run, lambda x: x['start'] == 0)}."
        for run in runs if run
    ]  # fmt: skip
    return "\n\n".join([table(head, rows, files, ()), *said, measured_in(process["environment"])])


def scheduled(name: str, one: Mapping[str, Any], lower: float | None = None) -> list[str]:
    """A row of `tuned`; 12 solver steps."""
    earned = f"{one['earned']:.4f} ± {2 * one['standard_error']:.4f}"
    bound = "" if lower is None else f"{lower:.4f}"
    return [name, f"{12 * one['cost']:.2f}", f"{one['rmse']:.4f}", earned, f"{one['value']:.4f}", bound]


def runs_until(run: Mapping[str, Any], true: Callable[[Mapping[str, Any]], bool]) -> str:
    """Runs before the first batch of which this is true."""
    found = [i for i, batch in enumerate(run["course"]) if true(batch)]
    return f"{found[0] * run['batch']:,}" if found else "none of its"


def settings(files: Files) -> str:
    """The settings H x S of the schedule that was tuned."""
    run = files.get(DIGITS[-1].path)
    if run is None:
        return MISSING
    rows = [[f"{h + 1}", *names] for h, names in enumerate(run["schedule"])]
    head = ["decision", "changed by less than 5 %", "by 5 to 60 %", "by more"]
    return markdown_table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], files: Files, cells: Sequence[Cell]) -> str:
    """With where it was measured, or that it was not."""
    if not rows:
        return MISSING
    environments = [files[cell.path]["environment"] for cell in cells if cell.path in files]
    return "\n\n".join([markdown_table(head, rows), *([measured_in(*environments)] if environments else [])])


def broken(found: Mapping[str, Any]) -> str:
    """Violations, and in how many trials there were any."""
    trials = sum(count > 0 for count in found["violations"])
    return f"{below(found)} (in {trials} of {len(found['violations'])} trials)" if trials else "0"


def below(found: Mapping[str, Any]) -> str:
    """Violations of a trial in the mean."""
    mean = fmean(found["violations"])
    return "0" if mean == 0 else f"{mean:.1f}"


def when(episodes: Sequence[int | None]) -> str:
    """The median of episodes, where there is one."""
    found = middle(episodes)
    return "never" if found == float("inf") else f"{found:,.0f}"


def relative(found: Mapping[str, Any]) -> float:
    """The regret over that of the baseline alone, of all trials together."""
    episodes = found["settings"]["episodes"]
    return sum(found["regret"]) / (episodes * (sum(found["best"]) - sum(found["baseline"])))


def printed(folder: Path) -> str:
    """The page's tables of what has been measured."""
    files = contents(folder)
    return "\n\n".join(f"{name}\n\n{render(files)}" for name, render in RENDERERS.items())


# Marker in a page -> what stands there.
RENDERERS: dict[str, Callable[[Files], str]] = {
    "stepmix-episodes": episodes, "stepmix-gaps": gaps, "stepmix-bonuses": bonuses, "stepmix-sizes": sizes,
    "stepmix-offline": offline, "stepmix-digits": tuned, "stepmix-settings": settings,
}  # fmt: skip
