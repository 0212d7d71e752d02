"""`epd inspect`."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..denoisers.protocol import Model
from ..denoisers.rows import limit_rows
from ..solvers.table import Table
from .inputs import fits, model_options, named, typed
from .models import load_model
from .options import Inspect, UsageError
from .sample import parse_seeds, solver_of

log = logging.getLogger("epd")
FEW = 16  # samples at the end of a run: some 4,000 evaluations, where an exact teacher took a hundred thousand or more


def inspect(options: Inspect) -> int:
    """Follows a solver's trajectories, prints what was found and writes it to `options.logdir`."""
    from ..evaluation.inspection import inspect as follow
    from ..evaluation.inspection_tensorboard import write_inspection
    from ..evaluation.inspection_text import verdict
    from ..evaluation.plots import Traced

    if (options.table is None) == (options.rule is None):
        raise UsageError("give exactly one of --table FILE and --rule NAME")
    shown = parse_seeds(options.shown)
    model = limit_rows(load_model(options.model, model_options(options)), options.rows)
    if options.table is not None:
        ((name, solver),) = named([options.table]).items()
        fits(solver, model, options.table)
    else:
        made = solver_of(options, model)
        name = f"{made.name}, {made.depth} calls"
        solver = Traced(name, made.rule, torch.tensor(made.sigmas, dtype=torch.float64))
    found = follow(
        model,
        solver,
        options.samples,
        options.batch,
        options.seed,
        shown,
        options.tolerance,
        getattr(torch, options.dtype),
        name,
    )
    write_inspection(found, options.logdir, options.png)
    print(verdict(found))
    log.info("watch: tensorboard --logdir %s", typed(options.logdir))
    return 0


def inspect_run(model: Model, path: Path, samples: int | None, converges: bool, tolerance: float) -> None:
    """Inspects what a run has learned, once, into its tb/inspect; a run is not lost to a model that resists.

    Args:
        path: of the run's table.
        samples: at least 2, or 0: none; None: FEW where the model converges.
        converges: whether the run has solved the ODE itself, with this tolerance.
    """
    logdir = path.parent / "tb" / "inspect"
    samples = max(2, samples) if samples else FEW if samples is None and converges else 0
    if not samples or logdir.exists():
        return
    from ..evaluation.inspection import inspect as follow
    from ..evaluation.inspection_tensorboard import write_inspection
    from ..evaluation.inspection_text import verdict

    try:
        found = follow(model, Table.load(path), samples, shown=(0, 1), tolerance=tolerance)
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        log.warning("not inspected: %s", error)
        return
    write_inspection(found, logdir)
    log.info("%s", verdict(found))
