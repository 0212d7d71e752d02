"""`epd compare`."""

from __future__ import annotations

import logging

import torch

from ..denoisers.rows import limit_rows, samples_together
from .inputs import fits, model_options, named
from .models import load_model
from .options import Compare, UsageError

log = logging.getLogger("epd")


def compare(options: Compare) -> int:
    """Measures tables against hand-made solvers and peers, and writes the comparison to `options.out`."""
    if any(calls < 1 for calls in options.calls):
        raise UsageError(f"calls = {list(options.calls)}: sequential calls are at least 1")
    from ..evaluation.compare import compare as measure
    from ..evaluation.compare import write_comparison
    from ..evaluation.comparison import markdown
    from ..evaluation.judges import judges_of

    tables = named(options.tables)
    conditioning = model_options(options)
    model = limit_rows(load_model(options.model, conditioning), options.rows)
    for name, table in tables.items():
        fits(table, model, name)
    comparison = measure(
        model,
        tables,
        options.calls,
        options.samples,
        options.batch or samples_together(model.shape, 512),
        options.seed,
        dtype=getattr(torch, options.dtype),
        **judges_of(options.model),
        tolerance=options.tolerance,
        alphas_cumprod=model.alphas_cumprod,
        solvers=options.solvers or None,
        keep=options.out / "cells",
        conditions=conditioning.conditions(),
        answer=options.answer,
    )
    paths = write_comparison(comparison, options.out)
    print(markdown(comparison))
    log.info("%s", ", ".join(map(str, paths)))
    return 0
