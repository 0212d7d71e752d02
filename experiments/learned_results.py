"""What `bench_learned` has measured so far, as the README shows it; columns that are not measured are left out."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluation.comparison import Cell, Comparison, errors_markdown, markdown
from ..runs.folder import difference
from .learned_cells import CALLS, FAMILIES, GROWN_FROM, SUBJECTS
from .markdown import MISSING, markdown_table, measured_in

FOLDER = Path(__file__).resolve().parent / "results" / "learned"
VARIED = ("calls", "seed", "grown_from", "widened_from")  # settings in which the runs of a family differ
IN_FULL = ("digits-exact", "digits")  # with the typical error and the Fréchet distance


@dataclass(frozen=True)
class Run:
    """A training run and how good its table is.

    Args:
        seed: of training.
        seconds: of the run, the teacher's left out.
        path: the model's, `ve` or `flow`.
    """

    family: str
    calls: int
    seed: int
    seconds: float
    path: str
    cell: Cell
    environment: dict[str, str | int]


@dataclass(frozen=True)
class Results:
    """All measured cells of a model, and what they were measured on (`Subject.judged`)."""

    name: str
    judged: Mapping[str, Any]
    runs: tuple[Run, ...]
    handmade: tuple[Cell, ...]

    def seeds(self, family: str, calls: int) -> list[Run]:
        """The runs of all training seeds, best first."""
        runs = [run for run in self.runs if (run.family, run.calls) == (family, calls)]
        return sorted(runs, key=lambda run: run.cell.rmse)

    def median(self, family: str, calls: int) -> Run | None:
        """The run in the middle of the seeds, if there is any."""
        runs = self.seeds(family, calls)
        return middle(runs) if runs else None

    @property
    def calls(self) -> tuple[int, ...]:
        """The sequential calls that any run was learned for."""
        return tuple(sorted({run.calls for run in self.runs}))

    def comparison(self) -> Comparison:
        """The median runs of the families that are compared, beside the hand-made solvers."""
        families = (*FAMILIES, *GROWN_FROM)
        chosen = [run for family in families for at in self.calls if (run := self.median(family, at))]
        learned = [replace(run.cell, group=run.family, solver=f"{run.family}-{run.calls}-{run.seed}") for run in chosen]
        of = self.judged
        return Comparison(
            self.name, self.runs[0].path, of["guidance"] or 1.0, of["samples"], of["batch"], 0, of["dtype"],
            of["tolerance"], of["tuning"], self.calls, (*learned, *self.handmade), {}, self.runs[0].environment,
        )  # fmt: skip


def middle(runs: Sequence[Run]) -> Run:
    """The run in the middle of some, best first; of an even count the worse one."""
    return runs[len(runs) // 2]


def contents(folder: Path = FOLDER) -> dict[str, Any]:
    """The files of a folder of results, by their path in it."""
    paths = sorted(folder.glob("*/*.json"))
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def of_model(files: Mapping[str, Any], name: str) -> Results:
    """The results of a model.

    Raises:
        ValueError: where some of them were measured on other samples than the rest, or some runs of a family were
            learned with other settings.
    """
    own = [content for path, content in files.items() if path.startswith(f"{name}/") and "judged" in content]
    judged = own[0]["judged"] if own else {}
    if any(content["judged"] != judged for content in own):
        raise ValueError(f"results of {name} are of different samples: measure again")
    learned = [content for content in own if "cell" in content]
    _check_settings(name, learned)
    runs = [_run(content) for content in learned]
    handmade = [Cell.from_parts(cell) for content in own for cell in content.get("cells", ())]
    return Results(name, judged, tuple(runs), tuple(handmade))


def _check_settings(name: str, learned: Sequence[Mapping[str, Any]]) -> None:
    """Raises a ValueError where runs of one family differ in more than their calls, seed and smaller tables."""
    first: dict[str, dict[str, Any]] = {}
    for content in learned:
        family = content["family"]
        settings = {key: value for key, value in content["settings"].items() if key not in VARIED}
        what = difference(first.setdefault(family, settings), settings)
        if what:
            raise ValueError(
                f"{family} of {name} was learned with different settings ({what}): measure again"
            )


def _run(content: Mapping[str, Any]) -> Run:
    path = content["table"]["provenance"]["path"]
    family, calls, seed, seconds = (content[key] for key in ("family", "calls", "seed", "seconds"))
    return Run(family, calls, seed, seconds, path, Cell.from_parts(content["cell"]), content["environment"])


def compared(name: str, files: Mapping[str, Any]) -> str:
    """Learned and hand-made solvers of a model, at equal calls and at equal evaluations."""
    results = of_model(files, name)
    if not results.runs:
        return MISSING
    # Cells are measured beside others, so their milliseconds mean nothing.
    comparison = results.comparison()
    tables = (markdown(comparison, timed=False) if name in IN_FULL else errors_markdown(comparison)).strip()
    environments = measured_in(*(run.environment for run in results.runs))
    return f"A learned row is the training run in the middle of its seeds. {tables}\n\n{environments}"


def spread(name: str, files: Mapping[str, Any]) -> str:
    """How much of a family's error is chance, of the training seed and of the samples, and what a run took."""
    results = of_model(files, name)
    if not results.runs:
        return MISSING
    parts = [
        f"RMSE on `{name}`: median of the training seeds (the worst one, of how many):",
        _per_calls(results, _seeds),
        "95 % bootstrap interval of the run in the middle, over the samples that it is measured on:",
        _per_calls(results, lambda runs: "{:.4f} to {:.4f}".format(*(middle(runs).cell.interval or ()))),
        "Total evaluations, and the shortest of the training runs, as they ran beside others, on how many threads:",
        _per_calls(results, _cost),
    ]
    teacher = files.get(f"{name}/teacher.json")
    if teacher:
        took = f"took {teacher['seconds']:.0f} s on {teacher['environment']['threads']}"
        parts.append(f"The teacher's {teacher['trajectories']:,} trajectories, which all runs share, {took}.")
    return "\n\n".join(parts)


def _seeds(runs: list[Run]) -> str:
    return f"{middle(runs).cell.rmse:.4f} ({runs[-1].cell.rmse:.4f} of {len(runs)})"


def _cost(runs: list[Run]) -> str:
    shortest: dict[int, float] = {}
    for run in runs:
        threads = int(run.environment["threads"])
        shortest[threads] = min(run.seconds, shortest.get(threads, math.inf))
    return ", ".join([str(runs[0].cell.evaluations), *(f"{shortest[t]:.0f} s on {t}" for t in sorted(shortest))])


def _per_calls(results: Results, text: Callable[[list[Run]], str]) -> str:
    """One row for each family, the best first, one column for each count of sequential calls."""
    families = {run.family: {at: results.seeds(run.family, at) for at in results.calls} for run in results.runs}

    def rank(family: str) -> float:
        return statistics.fmean(math.log(runs[0].cell.rmse) for runs in families[family].values() if runs)

    rows = [
        [f"`{family}`", *(text(runs) if runs else "" for runs in families[family].values())]
        for family in sorted(families, key=rank)
    ]
    return markdown_table(["sequential calls", *map(str, results.calls)], rows)


def ahead(files: Mapping[str, Any]) -> str:
    """The best learned and the best hand-made solver of each model, at equal calls and at equal evaluations."""
    counts = {"sequential calls": lambda cell: cell.calls, "evaluations": lambda cell: cell.evaluations}
    rows = []
    for name in SUBJECTS:
        results = of_model(files, name)
        cells = results.comparison().cells if results.runs else ()
        for what, count in counts.items():
            row = [_ahead([c for c in cells if count(c) <= at and at == (count(c) if c.learned else c.asked)])
                   for at in CALLS]  # fmt: skip
            rows += [[f"`{name}`, {what}", *row]] if any(row) else []
    if not rows:
        return MISSING
    heading = "RMSE to the exact end of the ODE: the best learned solver, the best hand-made one, their ratio:"
    return f"{heading}\n\n{markdown_table(['model, what is equal', *map(str, CALLS)], rows)}"


def _ahead(cells: Sequence[Cell]) -> str:
    learned, handmade = ([cell.rmse for cell in cells if cell.learned is own] for own in (True, False))
    if not learned or not handmade:
        return ""
    return f"**{min(learned):.4f}**, {min(handmade):.4f}, {min(handmade) / min(learned):.2f}x"


# Marker in a page -> what stands there.
RENDERERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "ahead": ahead,
    **{f"learned-{name}": partial(compared, name) for name in SUBJECTS},
    **{f"seeds-{name}": partial(spread, name) for name in SUBJECTS},
}
