"""Tables against hand-made solvers, each on its best schedule, and peers: `compare` measures, `write_comparison`
writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from ..accelerators.accelerate import recorded
from ..denoisers.checks import checked
from ..denoisers.fingerprint import model_identity
from ..denoisers.protocol import Model
from ..distill.teacher import POOL_SEEDS
from ..formats.files import write_atomically
from ..pipelines.find import find_table
from ..runs.environment import environment
from ..runs.progress import progress
from ..solvers.auto import AnswerName, answer_named
from ..solvers.exact import converged
from ..solvers.table import Table
from .batches import Batch, batches_of
from .cells import Judges, Work, handmade_cell, table_cell
from .comparison import Cell, Comparison, every_cell, family_names, markdown
from .handmade import candidate_schedules, handmade
from .kept import Kept
from .metrics import Features, extract, frechet_distance
from .peers import chosen, peers

log = logging.getLogger("epd")


def compare(
    model: Model,
    tables: Mapping[str, Table | str | Path],
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
    answer: AnswerName = "batched",
) -> Comparison:
    """Measures tables and all hand-made solvers at equal sequential calls and at equal total evaluations.

    A hand-made solver takes, cell by cell, the schedule with the smallest RMSE on the first `tuning` samples; what is
    reported is measured on all samples. A table counts at its own depth.

    Args:
        tables: by name, each a Table or where it is (see `find_table`); those of one structure that end in their calls
            (`epd-3`, `epd-5`) are shown as one family.
        samples: seeds `seed`, ..., `batch` solved together; those from 2^30 on are the noise that tables are learned
            and chosen on.
        features: states -> (B, F), for the Frechet distance to the converged samples and to `data` (M, *S).
        classifier: states -> logits, for the share of samples that are seen as their converged end points are.
        dtype: of the state; the converged end points are integrated in float64 whatever it is.
        tolerance: of the converged end points; a float32 network supports 1e-5.
        alphas_cumprod: (T,) of the model's training schedule, which adds the discrete schedule.
        solvers: names or groups of hand-made solvers and peers to measure, `hand-made` and `peers` being all of them;
            None is all hand-made ones and GITS, whose schedule takes a few thousand evaluations to find. ParaDiGMS is
            measured at `calls`, where it evaluates many rows at once; LD3, S4S and AMED are learned here, which
            takes as long as `epd distill` does.
        keep: folder in which cells are kept as they are measured, and from which a later call takes them.
        conditions: what else the model was asked for, ready for JSON; cells under others are not taken.
        answer: how the points of a question are evaluated, see `epd.solve`; changes seconds and rounding only.

    Raises:
        ValueError: for counts below 1, seeds of training noise, or names of solvers that do not exist.
    """
    if min(samples - 1, batch, tuning, *calls) < 1:
        raise ValueError(
            f"samples = {samples}, batch = {batch}, tuning = {tuning}, calls = {list(calls)}: all at least 1, samples 2"
        )
    if seed + samples > POOL_SEEDS:
        raise ValueError(
            f"seed = {seed} with samples = {samples}: tables are learned on the noise of seeds from {POOL_SEEDS} on, "
            "measure on seeds below"
        )
    model = checked(model, dtype)
    learned = {name: find_table(table) for name, table in tables.items()}
    families = family_names(learned)
    known = handmade(model.path)
    rivals, others = chosen(known, peers(known), solvers)
    views = {"features": features is not None, "classifier": classifier is not None, "data": data is not None}
    ends = {"batch": batch, "seed": seed, "tolerance": tolerance, "conditions": dict(conditions or {})}
    cells_of = {"samples": samples, "tuning": tuning} | views | _measured_by(alphas_cumprod)
    cells_of |= {} if answer == "batched" else {"answer": answer}
    cells_of |= {"accelerators": list(recorded(model))} if recorded(model) else {}
    kept = Kept(keep, ends_identity(model, dtype) | ends, cells_of)
    with torch.no_grad():
        batches = list(batches_of(model, range(seed, seed + samples), batch, dtype))
        end = torch.cat(list(_ends(model, batches, tolerance, kept)))
        of_data = None if data is None or features is None else extract(features, data, model.device)
        judges = Judges(end, features, classifier, of_data, model.device)
        few = list(batches_of(model, range(seed, seed + min(tuning, samples)), batch, dtype))
        candidates = candidate_schedules(model.path, model.sigma_min, model.sigma_max, alphas_cumprod)
        work = Work(model, candidates, few, batches, judges, dtype)
        every = sorted({*calls, *(table.nfe for table in learned.values())})
        jobs: dict[str, Callable[[], Cell | None]] = {
            f"{name} {table.digest}": partial(table_cell, name, families[name], table, work, answer_named(answer))
            for name, table in learned.items()
        }
        jobs |= {f"{one.name} at {at}": partial(handmade_cell, one, work, at) for one in rivals for at in every}
        jobs |= {
            f"{peer.name} at {at}": partial(peer.cell, work, at)
            for peer in others
            for at in (every if peer.one_row else sorted({*calls}))
        }
        measured = [kept.cell(key, job) for key, job in progress([*jobs.items()], "comparing", "cell")]
    # A table's family depends on the others' names, which may not be those of when it was measured.
    cells = [replace(c, group=families[c.solver]) if c.learned else c for c in measured if c is not None]
    reference = {}
    if features is not None and of_data is not None:
        reference["frechet_data"] = frechet_distance(extract(features, end, model.device), of_data)
    return Comparison(
        model.name, model.path, model.guidance, samples, batch, seed, str(dtype).removeprefix("torch."), tolerance,
        min(tuning, samples), tuple(calls), tuple(cells), reference, environment(),
    )  # fmt: skip


def ends_identity(model: Model, dtype: torch.dtype) -> dict[str, object]:
    """What an end point depends on beside its seed."""
    return {
        **model_identity(model),
        "sigmas": [model.sigma_min, model.sigma_max],
        "dtype": str(dtype).removeprefix("torch."),
    }


def _measured_by(alphas_cumprod: Tensor | None) -> dict[str, object]:
    """What a measured cell depends on beside its solver: the schedules, and the machine that its seconds are of."""
    here = {key: value for key, value in environment().items() if key != "date"}
    schedule = None if alphas_cumprod is None else sha256(alphas_cumprod.cpu().numpy().tobytes()).hexdigest()[:12]
    return {"alphas_cumprod": schedule, "environment": here}


def _ends(model: Model, batches: Sequence[Batch], tolerance: float, kept: Kept) -> Iterator[Tensor]:
    """The converged end points, batch by batch, in main memory."""
    span = (model.sigma_max, model.sigma_min)
    middle = math.sqrt(model.sigma_max * model.sigma_min)
    for number, batch in enumerate(progress(batches, "converged end points", "batch")):
        noise = batch.noise_on_device()
        solving = partial(converged, batch.denoiser, noise, span, tolerance, tolerance)
        yield kept.end(number, batch.denoiser, noise, middle, lambda solving=solving: solving()[-1]).cpu()


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
