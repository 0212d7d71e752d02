"""What `bench_refine` has measured so far, as the README shows it; what is not measured is left out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .markdown import MISSING, markdown_table, measured_in
from .refined_cells import LEARNED, SUBJECTS
from .refined_efficiency import efficiency, require_equal
from .refined_scores import SCORES, bootstrap

FOLDER = Path(__file__).resolve().parent / "results" / "refined"
CLEAR = 0.01  # gaps to the reference below this are too small to be closed in shares


@dataclass(frozen=True)
class Measured:
    """A solver's measured scores.

    Args:
        name: what the tables call it.
        scores: by name, (n,) each; of several training seeds their mean, sample by sample.
        distances: (m,) of the first samples to their converged end points, likewise.
        frechet: distance to renderings; of several seeds their mean.
        seeds: mean `all` of each training seed.
    """

    name: str
    scores: Mapping[str, Tensor]
    distances: Tensor
    frechet: float
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Column:
    """What there is at so many calls of a model, of so many points each.

    Args:
        handmade: at as many calls.
        equal: at as many evaluations; empty where that isn't measured.
    """

    calls: int
    points: int
    reference: Measured
    handmade: tuple[Measured, ...]
    equal: tuple[Measured, ...]
    distilled: Measured
    refined: Measured
    cells: tuple[Mapping[str, Any], ...]  # of the refinements

    @property
    def says(self) -> str:
        """Its calls, and its points where there are several."""
        return f"{self.calls} calls" + (f", {self.points} points each" if self.points > 1 else "")

    def best(self, score: str) -> Measured:
        """The best hand-made solver by a score, on the measured samples themselves, which is in its favour."""
        return _best(self.handmade, score)


def _best(solvers: Sequence[Measured], score: str) -> Measured:
    return max(solvers, key=lambda one: float(one.scores[score].mean()))


def contents(folder: Path = FOLDER) -> dict[str, Any]:
    """The files of a folder of results, by their path in it."""
    paths = sorted(folder.glob("*/*.json"))
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def columns(files: Mapping[str, Any], name: str) -> list[Column]:
    """The calls of a model at which everything has been measured with one training seed at least.

    Raises:
        ValueError: where cells were measured on different samples, or tables of so many calls refined differently.
    """
    own = [content for path, content in files.items() if path.startswith(f"{name}/") and "judged" in content]
    if any(content["judged"] != own[0]["judged"] for content in own):
        raise ValueError(f"results of {name} are of different samples: run `python -m epd.experiments.bench_refine`")
    def cells(what: str, calls: int) -> list[Mapping[str, Any]]:
        return [content for content in own if (content["what"], content["calls"]) == (what, calls)]

    def handmade(calls: int) -> tuple[Measured, ...]:
        return tuple(_measured(s["group"], [s["scores"]]) for cell in cells("handmade", calls) for s in cell["solvers"])

    reference = [content for content in own if content["what"] == "reference"]
    out = []
    for what, points in LEARNED.items():
        for calls in sorted({c["calls"] for c in own if c["what"] == what}) if what.startswith("refined") else ():
            refinements = cells(what, calls)
            require_equal(f"refinements of {name}", refinements, ("seed", "base", "starts"))
            seeds = [content["seed"] for content in refinements]
            given = [c for c in cells(what.replace("refined", "distilled"), calls) if c["seed"] in seeds]
            rivals = handmade(calls)
            if rivals and reference and len(given) == len(seeds):
                distilled, refined = (_measured(said, [c["scores"] for c in of])
                                      for said, of in (("distilled", given), ("refined", refinements)))  # fmt: skip
                steps = _measured(f"{reference[0]['calls']} steps", [reference[0]["scores"]])
                equal = rivals if points == 1 else handmade(calls * points)
                out.append(Column(calls, points, steps, rivals, equal, distilled, refined, tuple(refinements)))
    return out


def _measured(name: str, scores: Sequence[Mapping[str, Any]]) -> Measured:
    def mean(key: str) -> Tensor:
        return torch.tensor([one[key] for one in scores], dtype=torch.float64).mean(0)

    seeds = tuple(statistics.fmean(one["all"]) for one in scores)
    by_name = {key: mean(key) for key in SCORES}
    return Measured(name, by_name, mean("distance"), statistics.fmean(one["frechet"] for one in scores), seeds)


def solvers(name: str, files: Mapping[str, Any]) -> str:
    """How refined tables compare at equal calls, with what was watched beside the reward."""
    found = columns(files, name)
    if not found:
        return MISSING
    heads = ["", "score", found[0].reference.name, "best hand-made", "distilled", "refined",
             "refined - distilled", "refined - hand-made", "the same at equal evaluations",
             "of the gap closed"]  # fmt: skip
    rows = [_row(column, score) for column in found for score in SCORES]
    return "\n\n".join([
        _heading(name, found), markdown_table(heads, rows),
        "Not rewarded: root mean square distance to the converged end point, and the Fréchet distance to renderings of "
        "the same prompts (of the pictures' means over 4 x 4 pixels); smaller is better:",
        _watched(found),
        "`all` / `graded` of every hand-made solver in its best variant and on its best schedule:",
        _handmade(found),
        *_runs(found),
        measured_in(*(cell["environment"] for column in found for cell in column.cells)),
    ])  # fmt: skip


def _heading(name: str, found: Sequence[Column]) -> str:
    judged = found[0].cells[0]["judged"]
    seeds = dict.fromkeys(len(column.cells) for column in found)
    return (
        f"{judged['samples']:,} samples of `{name}` at guidance {judged['guidance']:g}, of held-out prompts, on noise "
        "that nothing was learned, chosen or tested on, the same of every solver; means and 95 % intervals (paired "
        f"bootstrap); learned columns are the mean of {' / '.join(map(str, seeds))} training seeds:"
    )


def _row(column: Column, score: str) -> list[str]:
    best = column.best(score)
    four = (column.reference, best, column.distilled, column.refined)
    rows = torch.stack([one.scores[score] for one in four])
    cells = [_text(bootstrap(rows[i : i + 1], lambda m: m[..., 0])) for i in range(4)]
    cells[1] += f" ({best.name})"
    over = [_text(bootstrap(rows, lambda m, i=i: m[..., 3] - m[..., i]), "+") for i in (2, 1)]
    return [column.says, f"`{score}`", *cells, *over, _equal(column, score), _closed(rows)]


def _equal(column: Column, score: str) -> str:
    """Refined less the best hand-made solver of as many evaluations, which are its calls, where that was measured."""
    if column.points == 1 or not column.equal:
        return "the same" if column.points == 1 else MISSING
    best = _best(column.equal, score)
    rows = torch.stack([best.scores[score], column.refined.scores[score]])
    value = float(best.scores[score].mean())
    return f"{_text(bootstrap(rows, lambda m: m[..., 1] - m[..., 0]), '+')} ({best.name}, {value:.3f})"


def _text(interval: tuple[float, float, float], sign: str = "") -> str:
    value, low, high = interval
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _closed(rows: Tensor) -> str:
    """The share of the gap between hand-made and reference that is closed, where there is a gap beyond doubt."""
    gap = bootstrap(rows, lambda m: m[..., 0] - m[..., 1])
    if gap[0] < CLEAR or gap[1] <= 0:
        return "no gap"
    share = bootstrap(rows, lambda m: (m[..., 3] - m[..., 1]) / (m[..., 0] - m[..., 1]))
    return "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * value for value in share))


def _watched(found: Sequence[Column]) -> str:
    heads = ["", "", found[0].reference.name, "best hand-made", "distilled", "refined"]
    rows = []
    for column in found:
        four = (column.reference, column.best("graded"), column.distilled, column.refined)
        distances = [f"{float(one.distances.square().mean().sqrt()):.4f}" for one in four]
        rows += [[column.says, "distance", *distances],
                 [column.says, "Fréchet", *(f"{one.frechet:.4f}" for one in four)]]  # fmt: skip
    return markdown_table(heads, rows)


def _handmade(found: Sequence[Column]) -> str:
    at = {column.calls: column.handmade for column in found}
    at |= {column.calls * column.points: column.equal for column in found if column.equal}
    by = {calls: {one.name: one for one in at[calls]} for calls in sorted(at)}
    groups = dict.fromkeys(group for of in by.values() for group in of)
    rows = [
        [group, *(" / ".join(f"{float(of[group].scores[s].mean()):.3f}" for s in ("all", "graded"))
                  if group in of else "" for of in by.values())] for group in groups
    ]  # fmt: skip
    return markdown_table(["calls", *map(str, by)], rows)


def _runs(found: Sequence[Column]) -> list[str]:
    """What each seed came to, and what refinement took."""
    rows = []
    for column in found:
        seconds = [cell["cpu_seconds"] for cell in column.cells]
        passed = sum(cell["passed"] is not None for cell in column.cells)
        rows.append([
            column.says, ", ".join(f"{value:.3f}" for value in column.distilled.seeds),
            ", ".join(f"{value:.3f}" for value in column.refined.seeds), f"{passed} of {len(column.cells)}",
            f"{column.cells[0]['evaluations']:,}", f"{min(seconds):.0f} to {max(seconds):.0f} s",
        ])  # fmt: skip
    heads = ["", "`all`, distilled", "`all`, refined", "better beyond doubt", "evaluations", "processor time"]
    return ["Training seed by seed, and what a refinement took on one core, its tests included:",
            markdown_table(heads, rows)]  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """Whose samples are shown side by side: the cells' files of one count of calls."""

    subject: str
    calls: int
    handmade: Mapping[str, Any]
    distilled: Mapping[str, Any]
    refined: Mapping[str, Any]


def shown(files: Mapping[str, Any]) -> Shown | None:
    """The fewest calls of the network where it has been measured, else of the exact model."""
    for name in reversed(SUBJECTS):
        for column in columns(files, name)[:1]:
            seed = column.cells[0]["seed"]
            solvers = files[f"{name}/handmade-{column.calls}.json"]["solvers"]
            best = next(one for one in solvers if one["group"] == column.best("graded").name)
            tables = (files[f"{name}/{what}-{column.calls}-{seed}.json"] for what in ("distilled", "refined"))
            return Shown(name, column.calls, best, *tables)
    return None


# Marker in a page -> what stands there.
RENDERERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    **{f"refined-{name}": partial(solvers, name) for name in SUBJECTS},
    "refine-efficiency": partial(efficiency, "shapes-exact"),
}
