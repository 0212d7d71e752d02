"""`epd distill`."""

from __future__ import annotations

import logging

import torch

from ..denoisers.checks import check_model
from ..denoisers.protocol import Model
from ..denoisers.rows import limit_rows
from ..pipelines.find import find_table
from ..solvers.table import Table
from .inputs import command_line, model_options
from .models import load_model
from .options import Distill

log = logging.getLogger("epd")


def distill(options: Distill) -> int:
    """Learns a table and writes the run to `options.out`; with `options.dry_run` prints the plan and its cost."""
    from ..distill.run import run_distill
    from ..runs.processes import Workers

    workers = Workers.of_accelerate()  # before there is a model: each process takes a device of its own
    model, init = workers.together(lambda: _loaded(options))
    config, chosen = options.distill_config(), model_options(options)
    path = run_distill(
        model, config, options.out, options.resume, options.dry_run, init, conditions=chosen.conditions()
    )
    workers.end()
    if path is not None:
        same = options.model + command_line(chosen)  # without its options it may be another model
        log.info("look:    epd table show %s", path)
        log.info("sample:  epd sample --model %s --table %s --out %s", same, path, options.out / "samples")
        log.info("compare: epd compare --model %s --tables %s --calls %d", same, path, options.calls)
        log.info("watch:   tensorboard --logdir %s", options.out / "tb")
    return 0


def _loaded(options: Distill) -> tuple[Model, Table | None]:
    """The model, checked, and the table to start from, where there is one."""
    init = find_table(options.init) if options.init else None
    model = limit_rows(load_model(options.model, model_options(options)), options.rows)
    check_model(model, getattr(torch, options.dtype))
    return model, init
