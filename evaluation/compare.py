"""Tables against every hand-made solver, each on its best schedule: `compare` measures, `write_comparison` writes."""

from __future__ import annotations

import difflib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from ..denoisers.checks import check_members, check_model
from ..denoisers.fingerprint import model_digest
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model
from ..denoisers.rows import limit_rows
from ..formats.files import write_atomically
from ..runs.environment import environment
from ..runs.progress import progress
from ..solvers.exact import converged
from ..solvers.solve import solve
from ..solvers.table import Table
from ..solvers.walk import Rule
from .comparison import Cell, Comparison, every_cell, family_names, markdown
from .handmade import HandMade, Schedule, candidate_schedules, handmade
from .kept import Kept
from .metrics import Features, extract, frechet_distance, rmse

log = logging.getLogger("epd")
TIMINGS = 3
Batches = list[tuple[Denoiser, Tensor]]


class Counting:
    """A denoiser that counts its calls and the rows that they hold."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.calls, self.rows = denoiser, 0, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.denoiser(x, sigma)


@dataclass(frozen=True)
class Solved:
    """End points of one solver and what they cost, recorded."""

    end: Tensor
    calls: int
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Judges:
    """The converged end points and the views in which others are compared with them."""

    end: Tensor
    features: Features | None
    classifier: Features | None
    data: Tensor | None  # features of data (M, F)

    def measures(self, end: Tensor) -> dict[str, float | None]:
        """The optional numbers of a cell."""
        out: dict[str, float | None] = {}
        if self.features is not None:
            told = extract(self.features, end)
            out["frechet"] = frechet_distance(told, extract(self.features, self.end))
            out["frechet_data"] = None if self.data is None else frechet_distance(told, self.data)
        if self.classifier is not None:
            same = extract(self.classifier, end).argmax(1) == extract(self.classifier, self.end).argmax(1)
            out["agreement"] = float(same.double().mean())
        return out


def run(rule: Rule, sigmas: Tensor, batches: Batches, timings: int = 1) -> Solved:
    """Solves every batch, and full ones again until there are this many timings of them.

    Raises:
        FloatingPointError: when the solver leaves the finite numbers.
    """
    ends, seconds, calls, rows = [], [], 0, 0
    full = [pair for pair in batches if len(pair[1]) == len(batches[0][1])]
    again = [full[0]] * max(timings - len(full), 0)
    for denoiser, noise in [*batches, *again]:
        counting = Counting(denoiser)
        began = time.perf_counter()
        ends.append(solve(rule, counting, noise, sigmas))
        if noise.is_cuda:
            torch.cuda.synchronize()
        if len(noise) == len(batches[0][1]):
            seconds.append(time.perf_counter() - began)
        calls, rows = counting.calls, counting.rows // len(noise)
    return Solved(torch.cat(ends[: len(batches)]), calls, rows, statistics.median(seconds))


def compare(
    model: Model,
    tables: Mapping[str, Table],
    calls: Sequence[int] = (3, 5, 7, 9),
    samples: int = 2048,
    batch: int = 512,
    seed: int = 0,
    features: Features | None = None,
    classifier: Features | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    data: Tensor | None = None,
    tuning: int = 256,
    tolerance: float = 1e-5,
    alphas_cumprod: Tensor | None = None,
    solvers: Sequence[str] | None = None,
    keep: Path | None = None,
    conditions: Mapping[str, object] | None = None,
) -> Comparison:
    """Measures tables and all hand-made solvers at equal sequential calls and at equal total evaluations.

    A hand-made solver takes, cell by cell, the schedule with the smallest RMSE on the first `tuning` samples; what is
    reported is measured on all samples. A table counts at its own depth.

    Args:
        tables: by name; those that differ in a trailing number only (`epd-3`, `epd-5`) are shown as one family.
        samples: seeds `seed`, ..., `batch` solved together; training and validation noise lies far above.
        features: states -> (B, F), for the Frechet distance to the converged samples and to `data` (M, *S).
        classifier: states -> logits, for the share of samples that are seen as their converged end points are.
        dtype: of the state; the converged end points are integrated in float64 whatever it is.
        tolerance: of the converged end points; a float32 network supports 1e-5.
        alphas_cumprod: (T,) of the model's training schedule, which adds the discrete schedule.
        solvers: names or groups of hand-made solvers to measure; None is all of them.
        keep: folder in which cells are kept as they are measured, and from which a later call takes them.
        conditions: what else the model was asked for, ready for JSON; cells under others are not taken.

    Raises:
        ValueError: for counts below 1, or names of solvers that do not exist.
    """
    if min(samples - 1, batch, tuning, *calls) < 1:
        raise ValueError(
            f"samples = {samples}, batch = {batch}, tuning = {tuning}, calls = {list(calls)}: all at least 1, samples 2"
        )
    check_members(model)
    model = limit_rows(model)
    check_model(model, dtype)
    families = family_names([*tables])
    rivals = chosen(handmade(model.path), solvers)
    settings = {"samples": samples, "batch": batch, "seed": seed, "tuning": tuning, "tolerance": tolerance}
    views = {"features": features is not None, "classifier": classifier is not None, "data": data is not None}
    described = _identity(model, dtype, alphas_cumprod) | settings | views | {"conditions": dict(conditions or {})}
    kept = Kept(keep, described)
    with torch.no_grad():
        batches = list(_batches(model, range(seed, seed + samples), batch, dtype))
        end = torch.cat(list(_ends(model, batches, tolerance, kept)))
        of_data = None if data is None or features is None else extract(features, data)
        judges = Judges(end, features, classifier, of_data)
        few = list(_batches(model, range(seed, seed + min(tuning, samples)), batch, dtype))
        candidates = candidate_schedules(model.path, model.sigma_min, model.sigma_max, alphas_cumprod)
        jobs: dict[str, Callable[[], Cell | None]] = {
            f"{name} {table.digest}": partial(_table_cell, name, families[name], table, batches, judges)
            for name, table in tables.items()
        }
        jobs |= {
            f"{solver.name} at {at}": partial(_handmade_cell, solver, at, candidates, few, batches, judges)
            for solver in rivals
            for at in sorted({*calls, *(table.nfe for table in tables.values())})
        }
        measured = [kept.cell(key, job) for key, job in progress([*jobs.items()], "comparing", "cell")]
    # A table's family depends on the others' names, which may not be those of when it was measured.
    cells = [replace(c, group=families[c.solver]) if c.learned else c for c in measured if c is not None]
    reference = {}
    if features is not None and of_data is not None:
        reference["frechet_data"] = frechet_distance(extract(features, end), of_data)
    return Comparison(
        model.name, model.path, model.guidance, samples, batch, seed, str(dtype).removeprefix("torch."), tolerance,
        min(tuning, samples), tuple(calls), tuple(cells), reference, environment(),
    )  # fmt: skip


def _identity(model: Model, dtype: torch.dtype, alphas_cumprod: Tensor | None) -> dict[str, object]:
    """What a measured cell depends on beside its solver: the model, and the machine that its seconds are of."""
    here = {key: value for key, value in environment().items() if key != "date"}
    schedule = None if alphas_cumprod is None else sha256(alphas_cumprod.cpu().numpy().tobytes()).hexdigest()[:12]
    return {
        "model": model.name,
        "path": model.path,
        "shape": list(model.shape),
        "guidance": model.guidance,
        "sigmas": [model.sigma_min, model.sigma_max],
        "weights": model_digest(model),
        "alphas_cumprod": schedule,
        "dtype": str(dtype).removeprefix("torch."),
        "environment": here,
    }


def _ends(model: Model, batches: Batches, tolerance: float, kept: Kept) -> Iterator[Tensor]:
    """The converged end points, batch by batch."""
    span = (model.sigma_max, model.sigma_min)
    middle = math.sqrt(model.sigma_max * model.sigma_min)
    for number, (denoiser, noise) in enumerate(progress(batches, "converged end points", "batch")):
        solving = partial(converged, denoiser, noise, span, tolerance, tolerance)
        yield kept.end(number, denoiser, noise, middle, lambda solving=solving: solving()[-1])


def _batches(model: Model, seeds: Sequence[int], batch: int, dtype: torch.dtype) -> Iterator[tuple[Denoiser, Tensor]]:
    for first in range(0, len(seeds), batch):
        part = seeds[first : first + batch]
        yield model.for_seeds(part), unit_noise(part, model.shape, dtype, model.device)


def chosen(known: list[HandMade], wanted: Sequence[str] | None) -> list[HandMade]:
    """The hand-made solvers of these names or groups.

    Raises:
        ValueError: for a name that none has.
    """
    if wanted is None:
        return known
    missing = [name for name in wanted if not any(name in (solver.name, solver.group) for solver in known)]
    if missing:
        groups = dict.fromkeys(solver.group for solver in known)
        names = {name.lower(): name for solver in known for name in (solver.name, solver.group)}
        close = difflib.get_close_matches(missing[0].lower(), names, n=1, cutoff=0.5)
        hint = f"perhaps you meant {names[close[0]]!r}; " if close else ""
        raise ValueError(f"no hand-made solver is named {missing[0]!r}: {hint}groups are {', '.join(groups)}")
    return [solver for solver in known if solver.name in wanted or solver.group in wanted]


def _table_cell(name: str, group: str, table: Table, batches: Batches, judges: Judges) -> Cell:
    sigmas = torch.tensor(table.sigmas)  # a copy: tables are read-only
    done = run(table.rule(batches[0][1].device), sigmas, batches, TIMINGS)
    error = rmse(done.end, judges.end)
    log.info("%-28s %2d calls, %2d evaluations: RMSE %.4f", name, done.calls, done.evaluations, error)
    return Cell(name, group, True, done.calls, done.calls, done.evaluations, table.num_steps, "learned", error,
                done.seconds, **judges.measures(done.end))  # fmt: skip


def _handmade_cell(
    solver: HandMade, at: int, candidates: Mapping[str, Schedule], few: Batches, batches: Batches, judges: Judges
) -> Cell | None:
    """The solver on its best schedule, or None where it cannot take a step or is finite on no schedule."""
    steps = solver.steps(at)
    if steps < 1:
        return None
    count = sum(len(noise) for _, noise in few)
    scores = {name: _score(solver, make(steps), few, judges.end[:count]) for name, make in candidates.items()}
    best = min(scores, key=lambda name: scores[name])
    if not math.isfinite(scores[best]):
        log.warning("%s is finite on no schedule at %d calls", solver.name, at)
        return None
    sigmas = candidates[best](steps)
    try:
        done = run(solver.rule(sigmas), sigmas, batches, TIMINGS)
    except FloatingPointError as error:  # finite on the tuning samples, yet not on all
        log.warning("%s at %d calls: %s", solver.name, at, error)
        return None
    error = rmse(done.end, judges.end)
    log.info("%-28s %2d calls: RMSE %.4f on %s", solver.name, done.calls, error, best)
    return Cell(solver.name, solver.group, False, at, done.calls, done.evaluations, steps, best, error, done.seconds,
                **judges.measures(done.end))  # fmt: skip


def _score(solver: HandMade, sigmas: Tensor, few: Batches, end: Tensor) -> float:
    try:
        error = rmse(run(solver.rule(sigmas), sigmas, few).end, end)
    except FloatingPointError:
        return math.inf
    return error if math.isfinite(error) else math.inf


def write_comparison(comparison: Comparison, folder: Path, plot: bool = True) -> list[Path]:
    """Writes comparison.json, comparison.md and the Pareto plots (where matplotlib is there); the paths written."""
    text = markdown(comparison)
    title = f"# Solvers on `{comparison.model}`\n\n"
    whole = f"{title}{text}\n## Every solver\n\n{every_cell(comparison)}\n"
    files: dict[Path, Callable[[], bytes]] = {
        folder / "comparison.json": lambda: comparison.to_json().encode(),
        folder / "comparison.md": lambda: whole.encode(),
    }
    for path, content in files.items():
        write_atomically(path, content())
    if not plot:
        return [*files]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        log.warning("no plots: matplotlib is not installed; pip install 'epd[plots]'")
        return [*files]
    from .pareto import pareto_plots

    return [*files, *pareto_plots(comparison, folder)]
