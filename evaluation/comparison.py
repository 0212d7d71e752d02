"""What a comparison is: measured cells, JSON and back, Markdown."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..formats.json_text import parse_json
from ..solvers.table import Table


@dataclass(frozen=True)
class Cell:
    """One solver at one number of sequential calls, measured.

    Args:
        solver: its name; `group` collects the variants of one method, or the tables of one family.
        learned: a table that was given, rather than a solver that others published.
        asked: sequential calls that were asked for; `calls` is what it took (at most that), recorded.
        evaluations: network evaluations of one sample, recorded.
        schedule: the best of the candidates; `learned` for a table.
        rmse: to the converged end points, over all elements.
        median: over samples of each one's RMSE: the typical error, where a few samples make most of `rmse`.
        interval: of `rmse`, 95 % bootstrap over samples.
        frechet: distance of its features to those of the converged end points.
        frechet_data: the same to features of data.
        agreement: share of samples that the classifier sees as it sees their converged end points.
        seconds: wall-clock of one batch, median.
        training: network evaluations (rows) that the comparison learned a peer with: counted for GITS, estimated
            where a table was trained; None: nothing was learned here.
    """

    solver: str
    group: str
    learned: bool
    asked: int
    calls: int
    evaluations: int
    steps: int
    schedule: str
    rmse: float
    seconds: float
    frechet: float | None = None
    frechet_data: float | None = None
    agreement: float | None = None
    median: float | None = None
    interval: tuple[float, float] | None = None
    training: int | None = None

    @property
    def peer(self) -> bool:
        """Whether it is neither a given table nor hand-made, but a published solver that was learned here."""
        return not self.learned and self.training is not None

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Cell:
        """The cell of a mapping that came out of JSON; one of before `median`, `interval` and `training` has none.

        Raises:
            TypeError: for what is no cell.
        """
        interval = parts.get("interval")
        return cls(**{**parts, "interval": None if interval is None else (float(interval[0]), float(interval[1]))})


@dataclass(frozen=True)
class Comparison:
    """All cells, and how they were measured.

    Args:
        calls: the sequential calls of the main table; cells at other counts serve the one at equal evaluations.
        reference: the converged end points themselves: `frechet_data` where it was measured, evaluations.
    """

    model: str
    path: str
    guidance: float
    samples: int
    batch: int
    seed: int
    dtype: str
    tolerance: float
    tuning: int
    calls: tuple[int, ...]
    cells: tuple[Cell, ...]
    reference: dict[str, float]
    environment: dict[str, str | int]

    def to_json(self) -> str:
        """JSON text, with the short Markdown tables beside the numbers."""
        return json.dumps({**dataclasses.asdict(self), "markdown": markdown(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """What `to_json` wrote.

        Raises:
            ValueError: for text that is not a comparison.
        """
        try:
            parts = parse_json(text, ValueError, "it")
            parts.pop("markdown", None)
            cells = tuple(Cell.from_parts(cell) for cell in parts.pop("cells"))
            return cls(**{**parts, "calls": tuple(parts["calls"])}, cells=cells)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a comparison that `epd compare` wrote: {error}; compare again") from error

    def best(
        self, count: Callable[[Cell], int], at: int, group: str, error: Callable[[Cell], float] = lambda cell: cell.rmse
    ) -> Cell | None:
        """The cell of a group with the smallest error among those whose count is `at`."""
        cells = [cell for cell in self.cells if cell.group == group and count(cell) == at]
        return min(cells, key=error, default=None)

    def groups(self) -> list[str]:
        """Tables first, then peers that were learned, then the others, each by their RMSE over the asked calls."""
        kinds = {cell.group: (not cell.learned, not cell.peer) for cell in self.cells}

        def rank(group: str) -> tuple[tuple[bool, bool], float]:
            cells = [self.best(by_asked, at, group) for at in self.calls]
            logs = [math.log(max(cell.rmse, 1e-300)) for cell in cells if cell is not None]
            return kinds[group], sum(logs) / len(logs) if logs else math.inf

        return sorted(kinds, key=rank)


def by_asked(cell: Cell) -> int:
    """Sequential calls asked for."""
    return cell.asked


def by_evaluations(cell: Cell) -> int:
    """Evaluations: of a solver that makes one a call, the most calls that fit, which are what was asked for."""
    return max(cell.asked, cell.evaluations)


def typical(cell: Cell) -> float:
    """The error that half of the samples stay below; infinite where it was not measured."""
    return math.inf if cell.median is None else cell.median


def family_names(tables: Mapping[str, Table]) -> dict[str, str]:
    """Table name -> its family: the name without its count of calls or evaluations (`epd-5`, `calls7`, `x/5-calls`)
    where that is what the number at its end is, and several tables of one structure and of different calls share the
    rest. Any other number, of a seed or a version, stays: a row that held both would show the better one only.
    """
    number = re.compile(r"[-_ ./]*(?:(?:calls|c|nfe)?[-_ ]*(\d+)|\b(\d+)[-_ ]*(?:calls|nfe))$")
    stems: dict[str, str] = {}
    for name, table in tables.items():
        found = number.search(name)
        counted = found is not None and int(found[1] or found[2]) in (table.depth, table.nfe)
        stems[name] = name[: found.start()] or "learned" if found is not None and counted else name

    def shared(stem: str) -> bool:
        own = [tables[name] for name in tables if stems[name] == stem]
        structures = {(t.provenance.config.get("family"), t.num_parallel) for t in own}
        return len(own) == len({t.depth for t in own}) > 1 and len(structures) == 1

    return {name: stem if shared(stem) else name for name, stem in stems.items()}


def markdown(c: Comparison, timed: bool = True) -> str:
    """The short tables: best variant of every method, at equal sequential calls and at equal evaluations.

    Args:
        timed: with milliseconds, where the cells were measured on an idle machine.
    """
    parts = _errors(c)
    if any(cell.median is not None for cell in c.cells):
        parts += [
            "Typical error (median over samples of each one's RMSE), at equal sequential calls, each hand-made solver "
            "in the variant that is best at it:",
            _grid(c, "sequential calls", c.calls, by_asked, lambda cell: cell.median, 4, error=typical),
        ]
    if any(cell.frechet is not None for cell in c.cells):
        parts += [
            "Fréchet distance to the converged samples in feature space, at equal sequential calls:",
            _grid(c, "sequential calls", c.calls, by_asked, lambda cell: cell.frechet, 3),
        ]
    if timed:
        parts += [
            f"Milliseconds per batch of {min(c.batch, c.samples)} samples, at equal sequential calls:",
            _grid(c, "sequential calls", c.calls, by_asked, lambda cell: 1000 * cell.seconds, 0, bold=False),
        ]
    return _joined(parts)


def errors_markdown(c: Comparison) -> str:
    """Of the short tables those of the RMSE."""
    return _joined(_errors(c))


def _errors(c: Comparison) -> list[str]:
    """Sentence, table, sentence, table: of the RMSE at equal calls and at equal evaluations."""
    parts = [
        f"RMSE to the converged end point at equal **sequential calls**: {c.samples} samples of `{c.model}`, each "
        f"hand-made solver in its best variant on its best schedule, chosen cell by cell.{_costs(c)}",
        _grid(c, "sequential calls", c.calls, by_asked, lambda cell: cell.rmse, 4),
    ]
    totals = sorted({cell.evaluations for cell in c.cells if cell.learned})
    if totals:
        parts += [
            "RMSE at equal **total evaluations** (a parallel call of K points counts K):",
            _grid(c, "evaluations", totals, by_evaluations, lambda cell: cell.rmse, 4),
        ]
    return parts


def _costs(c: Comparison) -> str:
    """Sentences of what others than tables cost beside their sequential calls."""
    out = ""
    for group in c.groups():
        found = (c.best(by_asked, at, group) for at in c.calls)
        cells = [cell for cell in found if cell is not None and not cell.learned]
        if any(cell.evaluations > cell.asked for cell in cells):
            counts = ", ".join(f"{cell.evaluations} at {cell.asked}" for cell in cells)
            out += f" {group} makes more evaluations than calls: {counts}."
        if any(cell.peer for cell in cells):
            most = max(cell.training or 0 for cell in cells)
            out += f" {group} was learned with {most:,} evaluations."
    return out


def _joined(parts: Sequence[str]) -> str:
    """Sentences and tables in turn, and what a star in a table means."""
    starred = "*" in "".join(parts[1::2]).replace("**", "")
    note = ["<sub>* took one call fewer: its steps take two.</sub>"] if starred else []
    return "\n\n".join([*parts, *note]) + "\n"


def _grid(
    c: Comparison,
    unit: str,
    columns: Sequence[int],
    count: Callable[[Cell], int],
    value: Callable[[Cell], float | None],
    digits: int,
    bold: bool = True,
    error: Callable[[Cell], float] = lambda cell: cell.rmse,
) -> str:
    rows = {group: [c.best(count, at, group, error) for at in columns] for group in c.groups()}
    shown = {g: [None if x is None else value(x) for x in cells] for g, cells in rows.items() if any(cells)}
    best = [min((v[i] for v in shown.values() if v[i] is not None), default=None) for i in range(len(columns))]  # type: ignore[type-var]
    lines = [[unit, *map(str, columns)], ["---", *["---:"] * len(columns)]]
    for group, values in shown.items():
        line = [_named(group, next(cell for cell in rows[group] if cell is not None))]
        for i, (number, cell) in enumerate(zip(values, rows[group], strict=True)):
            text = "" if number is None else f"{number:.{digits}f}"
            if number is not None and cell is not None and not cell.learned and cell.evaluations < cell.asked:
                text += "*"
            line.append(f"**{text}**" if bold and number is not None and number == best[i] else text)
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _named(group: str, cell: Cell) -> str:
    return f"**{group}** (learned)" if cell.learned else f"{group} (learned peer)" if cell.peer else group


def every_cell(c: Comparison) -> str:
    """The long table: each solver at each count, its schedule and its recorded cost."""
    head = ["solver", "asked", "calls", "evaluations", "steps", "schedule", "RMSE", "95 % interval", "median",
            "Fréchet", "agreement", "ms/batch", "learned with"]  # fmt: skip
    lines: list[list[str]] = [head, ["---"] * len(head)]
    for cell in sorted(c.cells, key=lambda cell: (cell.asked, cell.rmse)):
        measured: Mapping[str, Any] = dataclasses.asdict(cell)
        optional = ["" if measured[k] is None else f"{measured[k]:.4f}" for k in ("median", "frechet", "agreement")]
        counts = [str(measured[k]) for k in ("asked", "calls", "evaluations", "steps", "schedule")]
        between = "" if cell.interval is None else "{:.4f} to {:.4f}".format(*cell.interval)
        lines.append([cell.solver, *counts, f"{cell.rmse:.5f}", between, *optional, f"{1000 * cell.seconds:.1f}",
                      "" if cell.training is None else f"{cell.training:,}"])  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
