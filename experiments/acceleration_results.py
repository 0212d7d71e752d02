"""What `bench_acceleration` has measured, as the page's tables; seeds that differ in nothing else are one row."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from .acceleration_worlds import WORLDS
from .markdown import MISSING, markdown_table, measured_in

Cell = Mapping[str, Any]
HEADS = {
    "both": "both", "step": "step", "cache": "cache", "tpdm": "step, by leave-one-out (TPDM)",
    "judged": "both, beside a discriminator", "sparse": "sparse", "three": "all three",
}  # fmt: skip
STATIC = {"fewer plain steps": "plain steps", "one mask": "one mask", "GITS": "GITS"}
JUDGED = {"rmse": "RMSE", "sure": "classifier", "graded": "`graded`", "all": "`all`"}


def rows_of(contents: Mapping[str, Cell], world: str) -> list[list[Cell]]:
    """The cells of a world's policies, those of the same heads and decay together, in the order of the decays."""
    found: dict[tuple[int, float], list[Cell]] = {}
    for cell in contents.values():
        job = cell["job"]
        if job["model"] == world and job["heads"] in HEADS:
            found.setdefault(([*HEADS].index(job["heads"]), -job["decay"]), []).append(cell)
    return [found[key] for key in sorted(found)]


def spread(values: Sequence[float], digits: int, sign: Literal["-", "+"] = "-") -> str:
    """The mean, and in brackets the least and the most where there are several; `sign` is that of a format."""
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean + ("" if low == high else f" ({low} to {high})")


def needs(cells: Sequence[Cell], name: str) -> float | None:
    """Mean calls of a static solver that is as good; None where one of them is not with all steps."""
    calls = [cell["as good"][name] for cell in cells]
    return None if None in calls else statistics.fmean(calls)


def saved(cells: Sequence[Cell]) -> str:
    """How many calls fewer a policy takes than the best static solver that is as good."""
    as_good = [[calls for calls in cell["as good"].values() if calls is not None] for cell in cells]
    shares = [100 * (1 - cell["calls"] / min(calls)) for cell, calls in zip(cells, as_good, strict=True) if calls]
    return f"{spread(shares, 0, '+')} %" if shares else ""


def table(contents: Mapping[str, Cell], world: str) -> str:
    """Policies of a world beside static solvers of as many calls, and how many of these are as good."""
    rows, metric = rows_of(contents, world), WORLDS[world].metric
    if not rows:
        return MISSING
    lines = []
    for cells in rows:
        job, beside = cells[0]["job"], []
        for name in STATIC:
            calls = needs(cells, name)
            value = statistics.fmean(cell["beside"][name][metric] for cell in cells)
            enough = f"> {job['calls']}" if calls is None else f"{calls:.1f}"
            beside.append(f"{value:.4f} ({enough})")
        own = [spread([cell["calls"] for cell in cells], 1), spread([cell["policy"][metric] for cell in cells], 4)]
        lines.append([HEADS[job["heads"]], f"{job['decay']:g}", str(len(cells)), *own, *beside, saved(cells)])
    head = ["heads", "λ", "seeds", "calls", JUDGED[metric], *STATIC.values(), "calls saved"]
    some = rows[0][0]
    said = f"All {some['job']['calls']} plain steps: {some['plain'][metric]:.4f}."
    if some["attention"]:
        said += f" Attention is {100 * some['attention']:.0f} % of a call's products: more a sparse head cannot save."
    learned = {cell["calls"]: cell["table"][metric] for cell in contents.values()
               if cell["job"]["model"] == world and "table" in cell}  # fmt: skip
    if learned:
        each = ", ".join(f"{learned[calls]:.4f} with {calls}" for calls in sorted(learned))
        said += f" Learned tables: {each} calls."
    return "\n\n".join([markdown_table(head, lines), said, measured_in(*(c["environment"] for r in rows for c in r))])


def judges(contents: Mapping[str, Cell], world: str) -> str:
    """What those say that the policies were not learned by, at equal calls; and the calls of each kind of sample."""
    rows, metric = rows_of(contents, world), WORLDS[world].metric
    if not rows:
        return MISSING
    others = [name for name in JUDGED if name != metric and name in rows[0][0]["policy"]]
    lines = []
    for cells in rows:
        job, values = cells[0]["job"], []
        for judge in others:
            told = [[cell["policy"][judge] for cell in cells], [cell["plain"][judge] for cell in cells],
                    *([cell["beside"][name][judge] for cell in cells] for name in STATIC)]  # fmt: skip
            values += [f"{statistics.fmean(each):.3f}" for each in told]
        kinds = {kind: statistics.fmean(cell["calls by kind"][kind] for cell in cells)
                 for kind in cells[0]["calls by kind"]}  # fmt: skip
        low, high = (pick(kinds, key=kinds.__getitem__) for pick in (min, max))
        between = f"{kinds[low]:.2f} ({low}) to {kinds[high]:.2f} ({high})"
        lines.append([HEADS[job["heads"]], f"{job['decay']:g}", *values, between])
    solvers = ["policy", "all steps", *STATIC.values()]
    head = ["heads", "λ", *(f"{JUDGED[judge]}, {solver}" for judge in others for solver in solvers), "calls by kind"]
    return markdown_table(head, lines)


RENDERERS: dict[str, Callable[[Mapping[str, Cell]], str]] = {
    f"{name}-{world}": functools.partial(render, world=world)
    for world in WORLDS
    for name, render in (("acceleration", table), ("acceleration-judges", judges))
}
