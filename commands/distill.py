"""`epd distill`."""

from __future__ import annotations

import logging

import torch

from ..denoisers.checks import checked
from ..denoisers.protocol import Model
from ..pipelines.find import find_table
from ..solvers.table import Table
from .inputs import command_line, model_options, typed
from .inspect import inspect_run
from .models import load_model
from .options import Distill, UsageError

log = logging.getLogger("epd")


def distill(options: Distill) -> int:
    """Learns a table and writes the run to `options.out`; with `options.dry_run` prints the plan and its cost."""
    from ..distill.run import run_distill
    from ..distill.several import run_each, run_points
    from ..runs.processes import Workers

    workers = Workers.of_accelerate()  # before there is a model: each process takes a device of its own
    model, init = workers.together(lambda: _loaded(options))
    config, chosen = options.distill_config(), model_options(options)
    several, conditions = len(options.counts) * len(options.numbers) > 1, chosen.conditions()
    out, resume, dry_run = options.out, options.resume, options.dry_run
    if len(options.numbers) > 1:
        points = [int(number) for number in options.numbers]
        paths = run_points(model, config, options.counts, points, out, resume, dry_run, conditions)
    elif several:
        paths = [*run_each(model, config, options.counts, out, resume, dry_run, conditions=conditions).values()]
    else:
        path = run_distill(model, config, out, resume, dry_run, init, conditions=conditions)
        paths = [] if path is None else [path]
    workers.end()
    if paths:
        for path in paths if workers.rank == 0 else ():
            inspect_run(model, path, options.inspect, config.teacher == "exact", config.teacher_tolerance)
        same = command_line(options.model, chosen)  # without its options it may be another model
        last, samples = typed(paths[-1]), typed(options.out / "samples")
        log.info("look:    epd table show %s", last)
        log.info("sample:  epd sample --model %s --table %s --out %s", same, last, samples)
        log.info("compare: epd compare --model %s --tables %s --calls %s", same, typed(*paths), typed(*options.counts))
        log.info("watch:   tensorboard --logdir %s", typed(options.out if several else options.out / "tb"))
    return 0


def _loaded(options: Distill) -> tuple[Model, Table | None]:
    """The model, checked, and the table to start from, where there is one."""
    if options.init and len(options.counts) * len(options.numbers) > 1:
        several = f"calls = {options.calls}, points = {options.points}"
        raise UsageError(f"init = {options.init} and {several}: one count of calls and points begins at a table")
    init = find_table(options.init) if options.init else None
    return checked(load_model(options.model, model_options(options)), getattr(torch, options.dtype), options.rows), init
