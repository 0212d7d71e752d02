"""`epd report`."""

from __future__ import annotations

import logging

import torch

from ..denoisers.protocol import Model
from ..denoisers.rows import limit_rows
from ..formats.files import write_atomically
from ..pipelines.options import ModelOptions
from .inputs import command_line, fits, model_options
from .models import NAMES, load_model
from .options import Report
from .sample import parse_seeds

log = logging.getLogger("epd")


def report(options: Report) -> int:
    """Reads the runs, draws what their models show, and writes the page."""
    from ..evaluation.report import report as page
    from ..evaluation.report_look import look
    from ..evaluation.report_run import read_runs, verdicts

    seeds, dtype = parse_seeds(options.gallery), getattr(torch, options.dtype)
    runs = read_runs(options.runs)
    given = None if options.model is None else load_model(options.model, model_options(options))
    looks, words = {}, {}
    for run in runs:
        model = given
        if options.model is not None:
            words[run.name] = command_line(options.model, model_options(options))
        elif run.model in NAMES and (own := _own_options(run.config.get("conditions"))) is not None:
            model, words[run.name] = load_model(run.model, own), command_line(run.model, own)
        if model is None or run.table is None or not _is_of(model, run.table.provenance.guidance, given is not None):
            continue
        fits(run.table, model, run.path)
        looks[run.name] = look(limit_rows(model, options.rows), run, options.samples, seeds, options.tolerance, dtype)
    text = page(runs, looks, words)
    write_atomically(options.out, text.encode())
    for run in runs:
        print("\n".join(f"{run.name}: {line}" for line in verdicts(run)))
    log.info("open:    %s", options.out)
    return 0


def _own_options(conditions: object) -> ModelOptions | None:
    """The options that a run says its embedded model had; None where it does not say all, as of prompts."""
    if conditions is None:
        return ModelOptions()
    if not isinstance(conditions, dict) or "prompts" in conditions:
        return None
    try:
        return ModelOptions(**conditions)
    except ValueError:
        return None


def _is_of(model: Model, guidance: float | None, given: bool) -> bool:
    """Whether the run's table was learned on this model, which a user who names another one decides."""
    return given or guidance is None or guidance == model.guidance
