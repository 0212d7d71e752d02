"""What a run's folder holds for a report, and the verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..formats.files import read_text
from ..formats.json_text import read_json
from ..runs.folder import recorded_identity
from ..solvers.table import Table
from .comparison import Cell, Comparison, by_asked, by_evaluations

MEASURED = {"validation_rmse": "RMSE on held-out noise", "gain": "gain of reward", "gain_low": "its 95 % interval from",
            "gain_high": "to"}  # fmt: skip
TABLE, COMPARISON, TUNE, REFINE = "solver.json", "comparison.json", "tune.json", "report.json"


class ReportError(ValueError):
    """A folder that there is nothing to report of."""


@dataclass(frozen=True)
class Run:
    """What a folder of `epd distill`, `refine`, `tune` or `compare` holds.

    Args:
        name: the folder's own.
        kind: the command that wrote it.
        path: as it was given.
        config: of config.json: everything that the run's numbers depend on; empty where there is none.
        tuned: of tune.json; empty where there is none.
        refined: of a refinement's report: False where its table is the given one. None: it is none, or does not say.
    """

    name: str
    kind: str
    path: str
    table: Table | None
    comparison: Comparison | None
    config: Mapping[str, Any]
    tuned: Mapping[str, Any]
    refined: object = None

    @property
    def model(self) -> str:
        """The name of its model; empty when unknown."""
        recorded = self.config.get("model") or (self.table.provenance.model if self.table else "")
        return str(recorded or (self.comparison.model if self.comparison else ""))

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where its numbers were measured; empty when unknown."""
        recorded = self.comparison.environment if self.comparison else self.tuned.get("environment", {})
        return recorded if isinstance(recorded, Mapping) else {}

    @property
    def training(self) -> Mapping[str, Any]:
        """The configuration that it was learned with; empty when unknown."""
        recorded = self.config.get("config") or (self.table.provenance.config if self.table else {})
        return recorded if isinstance(recorded, Mapping) else {}

    def cells(self) -> list[Cell]:
        """What the comparison measured of its table, or of all tables where the run is a comparison.

        A cell does not say which numbers its table has: it is one of as many calls and evaluations, by this run's name
        where several are.
        """
        learned = [cell for cell in self.comparison.cells if cell.learned] if self.comparison else []
        table = self.table
        if table is None:
            return learned
        fitting = [cell for cell in learned if (cell.calls, cell.evaluations) == (table.depth, table.nfe)]
        own = [cell for cell in fitting if cell.solver in (self.name, self.path)]
        return own[:1] or (fitting if len(fitting) == 1 else [])


@dataclass(frozen=True)
class Standing:
    """A learned solver's error beside that of the best hand-made one at as much cost.

    Args:
        ratio: of the learned one's RMSE to the other's: below 1 it is better.
        certain: whether the 95 % intervals of the two are apart; None: not measured.
    """

    rival: Cell
    ratio: float
    certain: bool | None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders; one without a comparison takes what a comparison among them measured of its table.

    Raises:
        ReportError: for a folder that holds no run.
        ValueError: for a file in it that cannot be read.
    """
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    runs = [replace(run, name=run.path) if names.count(run.name) > 1 else run for run in runs]
    given = [run.comparison for run in runs if run.kind == "compare" and run.comparison]
    return [run if run.comparison else _compared(run, given) for run in runs]


def _compared(run: Run, comparisons: Sequence[Comparison]) -> Run:
    candidates = [replace(run, comparison=c) for c in comparisons if c.model == run.model]
    return next((c for c in candidates if any(cell.solver == run.name for cell in c.cells())), run)


def read_run(path: Path) -> Run:
    """The run in a folder.

    Raises:
        ReportError: where it holds none.
        ValueError: for a file in it that cannot be read.
    """
    if not path.is_dir():
        raise ReportError(f"{path} is no folder: give the folder of an epd distill, refine, tune or compare")
    table = Table.load(path / TABLE) if (path / TABLE).exists() else None
    places = (path / "compare" / COMPARISON, path / COMPARISON)
    found = next((place for place in places if place.exists()), None)
    comparison = None if found is None else Comparison.from_json(read_text(found, ReportError))
    tuned = _mapping(path / TUNE)
    if table is None and comparison is None:
        within = sorted(child.name for child in path.iterdir() if (child / TABLE).exists())
        hint = f"it has folders that hold one: {', '.join(within)}" if within else "give the folder of a finished run"
        raise ReportError(f"{path} holds none of {TABLE}, {COMPARISON}, compare/{COMPARISON}: {hint}")
    kind = "tune" if tuned else "refine" if (path / REFINE).exists() else "distill" if table else "compare"
    refined = _mapping(path / REFINE).get("refined")
    return Run(path.resolve().name, kind, str(path), table, comparison, recorded_identity(path), tuned, refined)


def _mapping(path: Path) -> Mapping[str, Any]:
    content = read_json(path, ReportError) if path.exists() else {}
    if not isinstance(content, dict):
        raise ReportError(f"{path} holds no object: run the command that wrote it again")
    return content


def standing(comparison: Comparison, cell: Cell, count: Callable[[Cell], int], at: int) -> Standing | None:
    """A cell beside the best hand-made solver whose count is `at`; None where none was measured."""
    rivals = [other for other in comparison.cells if not other.learned and not other.peer and count(other) == at]
    if not rivals:
        return None
    rival = min(rivals, key=lambda other: other.rmse)
    apart = None
    if cell.interval and rival.interval:
        apart = cell.interval[1] < rival.interval[0] or rival.interval[1] < cell.interval[0]
    return Standing(rival, cell.rmse / rival.rmse if rival.rmse else math.inf, apart)


def at_calls(comparison: Comparison, cell: Cell) -> Standing | None:
    """At equal sequential calls."""
    return standing(comparison, cell, by_asked, cell.asked)


def at_evaluations(comparison: Comparison, cell: Cell) -> Standing | None:
    """At equal total evaluations."""
    return standing(comparison, cell, by_evaluations, cell.evaluations)


def verdicts(run: Run) -> list[str]:
    """What the run comes to: one sentence, or of a comparison one for each of its tables."""
    cells = run.cells()
    if run.comparison is None or (run.table is not None and not cells):
        return [_tuned(run) if run.tuned else _own(run)]
    if not cells:
        return [_handmade(run.comparison)]
    own = [compared(run.comparison, cell) for cell in cells]
    return own if run.table else [f"{cell.solver}: {text}" for cell, text in zip(cells, own, strict=True)]


def compared(comparison: Comparison, cell: Cell) -> str:
    """The verdict of a learned cell."""
    calls, total = at_calls(comparison, cell), at_evaluations(comparison, cell)
    count = f"{cell.calls} call{'s' * (cell.calls != 1)}"
    if calls is None:
        return f"{count}, RMSE {cell.rmse:.4g}; no hand-made solver was measured at as many."
    text = f"{count}, {times(calls.ratio)} the error of the best hand-made solver at equal calls ({calls.rival.solver})"
    if total is None:
        text += f"; none was measured at its {cell.evaluations} evaluations"
    elif cell.evaluations == cell.asked:
        text += " and at equal evaluations"
    else:
        text += f", {times(total.ratio)} at equal evaluations ({total.rival.solver})"
    unsure = [where.rival.solver for where in (calls, total) if where is not None and where.certain is False]
    if unsure:
        text += "; 95 % intervals overlap with that of " + " and ".join(dict.fromkeys(unsure))
    peers = [other for other in comparison.cells if other.peer and other.asked == cell.asked and other.rmse < cell.rmse]
    if peers:
        ahead = min(peers, key=lambda other: other.rmse)
        text += f"; {ahead.solver}, a learned peer, is ahead of it at equal calls ({ahead.rmse:.4g} to {cell.rmse:.4g})"
    return f"{text}."


def times(ratio: float) -> str:
    """A ratio of errors: 0.63x; small ones keep two digits."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def _handmade(comparison: Comparison) -> str:
    """The verdict of a comparison without tables."""
    best = min(comparison.cells, key=lambda cell: cell.rmse, default=None)
    if best is None:
        return "Nothing was measured."
    text = "No learned solver was compared; the best of the others is"
    return f"{text} {best.solver} at {best.calls} calls, RMSE {best.rmse:.4g}."


def _tuned(run: Run) -> str:
    """At equal time, which is what tuning measures."""
    cell, rival = (Cell.from_parts(run.tuned[name]) for name in ("cell", "rival"))
    ratio = cell.rmse / rival.rmse if rival.rmse else math.inf
    return (
        f"{cell.calls} calls, {times(ratio)} the error of the best hand-made solver in as much time ({rival.solver} at "
        f"{rival.calls} calls)."
    )


def _own(run: Run) -> str:
    """What a run without a comparison measured itself."""
    assert run.table is not None, "a run without a comparison has a table"
    cost = f"{run.table.depth} calls, {run.table.nfe} evaluations a sample"
    if run.refined is False:  # its metrics are those of where it comes from
        return f"{cost}; it is the given table, as none was better beyond doubt, and no other solver stands beside it."
    found = run.table.provenance.metrics.items()
    measured = ", ".join(f"{MEASURED.get(name, name)} {value:.4g}" for name, value in found)
    return f"{cost}; the run itself measured {measured or 'nothing'}, and no other solver beside it."


