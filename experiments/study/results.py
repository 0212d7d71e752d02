"""Who is ahead on a world, at equal calls and at equal evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...evaluation.comparison import Cell, Comparison
from ..learned_results import Results, middle, of_model
from ..markdown import MISSING, markdown_table, measured_in
from .cells import CALLS, HEADLINE, OURS

Files = Mapping[str, Any]
COUNTS: dict[str, Callable[[Entry], int]] = {
    "sequential calls": lambda entry: entry.calls,
    "evaluations": lambda entry: entry.evaluations,
}


@dataclass(frozen=True)
class Entry:
    """A solver at one cost.

    Args:
        name: of the family, or of the method, in its best variant.
        calls, evaluations: of one sample, recorded.
        errors: of every training seed, best first; one where nothing is trained.
    """

    name: str
    calls: int
    evaluations: int
    errors: tuple[float, ...]

    @property
    def ours(self) -> bool:
        """Whether it is our family."""
        return self.name in OURS

    @property
    def error(self) -> float:
        """Of the seed in the middle; of an even count the worse one."""
        return self.errors[len(self.errors) // 2]

    def text(self) -> str:
        """The error and, of several seeds, from the best to the worst."""
        between = f" ({self.errors[0]:.4f} to {self.errors[-1]:.4f})" if len(self.errors) > 1 else ""
        return f"{self.error:.4f}{between}"


def entries(results: Results, error: str = "rmse") -> list[Entry]:
    """Everything that was measured on a world, by an error of its cells: `rmse`, or `median` over the samples."""

    def of(*cells: Cell) -> tuple[float, ...]:
        return tuple(sorted(getattr(cell, error) for cell in cells))

    keys = dict.fromkeys((run.family, run.calls) for run in results.runs)
    trained = []
    for family, calls in keys:
        cells = [run.cell for run in results.seeds(family, calls)]
        trained.append(Entry(family, calls, cells[0].evaluations, of(*cells)))
    return [*trained, *(Entry(c.group, c.calls, c.evaluations, of(c)) for c in results.handmade)]


def best(found: Sequence[Entry], count: Callable[[Entry], int], at: int) -> Entry | None:
    """The entry of the smallest error among those that cost no more than this."""
    return min((entry for entry in found if count(entry) <= at), key=lambda entry: entry.error, default=None)


@dataclass(frozen=True)
class Verdict:
    """Our best learned solver against the best that is not ours.

    Args:
        low, high: of the ratio of their errors: worst of our seeds to the best of theirs, and the other way round.
    """

    own: Entry
    other: Entry

    @property
    def ratio(self) -> float:
        """How many times smaller our error is."""
        return self.other.error / self.own.error

    @property
    def low(self) -> float:
        """The same, of our worst seed and their best one."""
        return self.other.errors[0] / self.own.errors[-1]

    @property
    def high(self) -> float:
        """The same, of our best seed and their worst one."""
        return self.other.errors[-1] / self.own.errors[0]

    def text(self) -> str:
        """One field of a table."""
        said = "" if self.low > 1 else " **behind**" if self.high < 1 else " **not beyond chance**"
        ratio = f"**{self.ratio:.2f}x** ({self.low:.2f} to {self.high:.2f}){said}"
        return f"{ratio}<br>{self.own.name} {self.own.error:.4f}<br>{self.other.name} {self.other.error:.4f}"


def verdict(found: Sequence[Entry], count: Callable[[Entry], int], at: int) -> Verdict | None:
    """Who is ahead at a cost; None where one side is not measured yet."""
    own, other = (best([e for e in found if e.ours is ours], count, at) for ours in (True, False))
    return None if own is None or other is None else Verdict(own, other)


def ahead(files: Files, error: str = "rmse") -> str:
    """The first table: in every column the best of ours and the best of all others; see `entries`."""
    rows, behind = [], 0
    for name in HEADLINE:
        found = entries(of_model(files, name), error)
        for what, count in COUNTS.items():
            verdicts = [verdict(found, count, at) for at in CALLS]
            behind += sum(v is not None and v.low <= 1 for v in verdicts)
            if any(verdicts):
                rows.append([f"`{name}`, {what}", *("" if v is None else v.text() for v in verdicts)])
    if not rows:
        return MISSING
    said = "In every column ours is ahead, even its worst seed of the best seed of the other." if not behind else (
        f"In {behind} columns ours is not ahead beyond chance."
    )  # fmt: skip
    return f"{said}\n\n{markdown_table(['world, what is equal', *map(str, CALLS)], rows)}"


def solvers(name: str, files: Files) -> str:
    """Every solver of a world, at equal calls and at equal evaluations."""
    results = of_model(files, name)
    found = entries(results)
    if not found:
        return MISSING
    parts = []
    for what, count in COUNTS.items():
        rows = {each: [best([e for e in found if e.name == each], count, at) for at in CALLS]
                for each in dict.fromkeys(entry.name for entry in found)}  # fmt: skip
        shown = sorted(((each, row) for each, row in rows.items() if any(row)), key=_rank)
        least = [min((e.error for row in rows.values() if (e := row[i])), default=None) for i in range(len(CALLS))]
        table = [
            [f"**{each}**" if each in OURS else each,
             *("" if e is None else f"**{e.text()}**" if e.error == low else e.text()
               for e, low in zip(row, least, strict=True))]
            for each, row in shown
        ]  # fmt: skip
        parts += [f"At most so many **{what}**:", markdown_table([what, *map(str, CALLS)], table)]
    environments = [run.environment for run in results.runs]
    plot = f"![Error against sequential calls and against evaluations on {name}]({picture(name)})"
    return "\n\n".join([*parts, plot, measured_in(*environments)])


def picture(name: str) -> str:
    """The file of a picture, beside the page."""
    return f"study_{name.replace('-', '_')}.png"


def _rank(row: tuple[str, Sequence[Entry | None]]) -> tuple[bool, float]:
    """Ours first, then by the error at the highest cost."""
    return row[0] not in OURS, [entry.error for entry in row[1] if entry is not None][-1]


def comparison(files: Files, name: str) -> Comparison | None:
    """The runs in the middle of their seeds beside all others, for the plots; GITS and PAS with their best rule."""
    results = of_model(files, name)
    if not results.runs:
        return None
    cells: list[Cell] = []
    for family, calls in dict.fromkeys((run.family, run.calls) for run in results.runs):
        cell = replace(middle(results.seeds(family, calls)).cell, group=family)
        cells.append(cell if family in OURS else replace(cell, learned=False, training=0))
    cells += [replace(cell, group=cell.group.split(" + ")[0]) if cell.peer else cell for cell in results.handmade]
    of = results.judged
    return Comparison(
        name, results.runs[0].path, of["guidance"] or 1.0, of["samples"], of["batch"], 0, of["dtype"], of["tolerance"],
        of["tuning"], CALLS, tuple(cells), {}, results.runs[0].environment,
    )  # fmt: skip
