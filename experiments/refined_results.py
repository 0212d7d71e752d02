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
from .refined_cells import EFFICIENCY, REWARD, SUBJECTS
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
    """What there is at so many calls of a model."""

    calls: int
    reference: Measured
    handmade: tuple[Measured, ...]
    distilled: Measured
    refined: Measured
    cells: tuple[Mapping[str, Any], ...]  # of the refinements

    def best(self, score: str) -> Measured:
        """The best hand-made solver by a score, on the measured samples themselves, which is in its favour."""
        return max(self.handmade, key=lambda one: float(one.scores[score].mean()))


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
    out = []
    for calls in sorted({content["calls"] for content in own if content["what"] == "refined"}):
        of = {what: [c for c in own if (c["what"], c["calls"]) == (what, calls)] for what in ("handmade", "refined")}
        _require_equal(f"refinements of {name}", of["refined"], ("seed", "base"))
        reference = [content for content in own if content["what"] == "reference"]
        seeds = [content["seed"] for content in of["refined"]]
        given = [c for c in own if (c["what"], c["calls"]) == ("distilled", calls) and c["seed"] in seeds]
        if of["handmade"] and reference and len(given) == len(seeds):
            handmade = tuple(_measured(s["group"], [s["scores"]]) for s in of["handmade"][0]["solvers"])
            distilled, refined = (_measured(what, [c["scores"] for c in cells])
                                  for what, cells in (("distilled", given), ("refined", of["refined"])))  # fmt: skip
            steps = _measured(f"{reference[0]['calls']} steps", [reference[0]["scores"]])
            out.append(Column(calls, steps, handmade, distilled, refined, tuple(of["refined"])))
    return out


def _require_equal(what: str, cells: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> None:
    """Raises a ValueError where cells differ in other settings than those that are varied."""
    settings = [{key: value for key, value in cell["settings"].items() if key not in varied} for cell in cells]
    if any(one != settings[0] for one in settings):
        raise ValueError(f"{what} had different settings: run `python -m epd.experiments.bench_refine`")


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
             "refined - distilled", "refined - hand-made", "of the gap closed"]  # fmt: skip
    rows = [_row(column, score) for column in found for score in SCORES]
    return "\n\n".join([
        _heading(name, files, found), markdown_table(heads, rows),
        "Not rewarded: root mean square distance to the converged end point, and the Fréchet distance to renderings of "
        "the same prompts (of the pictures' means over 4 x 4 pixels); smaller is better:",
        _watched(found),
        "`all` / `graded` of every hand-made solver in its best variant and on its best schedule:",
        _handmade(found),
        *_runs(found),
        measured_in(*(cell["environment"] for column in found for cell in column.cells)),
    ])  # fmt: skip


def _heading(name: str, files: Mapping[str, Any], found: Sequence[Column]) -> str:
    judged = files[f"{name}/refined-{found[0].calls}-{found[0].cells[0]['seed']}.json"]["judged"]
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
    return [f"{column.calls} calls", f"`{score}`", *cells, *over, _closed(rows)]


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
        rows += [[f"{column.calls} calls", "distance", *distances],
                 [f"{column.calls} calls", "Fréchet", *(f"{one.frechet:.4f}" for one in four)]]  # fmt: skip
    return markdown_table(heads, rows)


def _handmade(found: Sequence[Column]) -> str:
    groups = dict.fromkeys(one.name for column in found for one in column.handmade)
    by = [{one.name: one for one in column.handmade} for column in found]
    rows = [
        [group, *(" / ".join(f"{float(of[group].scores[s].mean()):.3f}" for s in ("all", "graded"))
                  if group in of else "" for of in by)] for group in groups
    ]  # fmt: skip
    return markdown_table(["calls", *(str(column.calls) for column in found)], rows)


def _runs(found: Sequence[Column]) -> list[str]:
    """What each seed came to, and what refinement took."""
    rows = []
    for column in found:
        seconds = [cell["cpu_seconds"] for cell in column.cells]
        passed = sum(cell["passed"] is not None for cell in column.cells)
        rows.append([
            f"{column.calls} calls", ", ".join(f"{value:.3f}" for value in column.distilled.seeds),
            ", ".join(f"{value:.3f}" for value in column.refined.seeds), f"{passed} of {len(column.cells)}",
            f"{column.cells[0]['evaluations']:,}", f"{min(seconds):.0f} to {max(seconds):.0f} s",
        ])  # fmt: skip
    heads = ["", "`all`, distilled", "`all`, refined", "better beyond doubt", "evaluations", "processor time"]
    return ["Training seed by seed, and what a refinement took on one core, its tests included:",
            markdown_table(heads, rows)]  # fmt: skip


@dataclass(frozen=True)
class Course:
    """The held-out gain of the reward along the refinements of one kind.

    Args:
        rollouts: (T,) after which it was tested.
        gains: (seeds, T).
    """

    name: str
    rollouts: tuple[int, ...]
    gains: Tensor

    @property
    def label(self) -> str:
        """Baseline, noise, and prompts x tables in words."""
        row = EFFICIENCY[self.name]
        noise = "shared" if row["shared_noise"] else "own"
        return f"{row['baseline']}, {noise} noise, {row['groups']} x {row['group_size']}"


def courses(files: Mapping[str, Any], name: str) -> list[Course]:
    """The study of sample efficiency of a model, one course for each row that all its seeds have been measured of."""
    out = []
    for what in EFFICIENCY:
        own = [cell for cell in _studied(files, name) if cell["what"] == what]
        if own:
            gains = [[test["gain"][REWARD] for test in cell["course"]] for cell in own]
            rollouts = tuple(test["rollouts"] for test in own[0]["course"])
            out.append(Course(what, rollouts, torch.tensor(gains, dtype=torch.float64)))
    _require_equal(f"refinements of {name}", _studied(files, name), (*next(iter(EFFICIENCY.values())), "seed"))
    return out


def _studied(files: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [c for path, c in files.items() if path.startswith(f"{name}/") and c.get("what") in EFFICIENCY]


def efficiency(name: str, files: Mapping[str, Any]) -> str:
    """How much reward each baseline makes of as many rollouts."""
    found = courses(files, name)
    if not found:
        return MISSING
    most = max(float(course.gains[:, -1].mean()) for course in found)
    shown = [i for i in range(len(found[0].rollouts)) if i in _thirds(len(found[0].rollouts))]
    rows = []
    for course in sorted(found, key=lambda one: -float(one.gains.mean())):
        values = [f"{float(course.gains[:, i].mean()):+.4f} ({', '.join(f'{v:+.3f}' for v in course.gains[:, i])})"
                  for i in shown]  # fmt: skip
        half = next((f"{r:,}" for r, g in zip(course.rollouts, course.gains.mean(0), strict=True) if g >= most / 2), "")
        rows.append([course.label, *values, half])
    after = [f"{found[0].rollouts[i]:,} rollouts" for i in shown]
    heads = ["baseline, noise, prompts x tables", *after, "rollouts to half of the largest gain"]
    cells = _studied(files, name)
    heading = f"Gain of `graded` on held-out prompts of `{name}`, mean (each of {len(found[0].gains)} training seeds):"
    return f"{heading}\n\n{markdown_table(heads, rows)}\n\n{measured_in(*(cell['environment'] for cell in cells))}"


def _thirds(count: int) -> list[int]:
    return [count // 4, count // 2, count - 1]


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
