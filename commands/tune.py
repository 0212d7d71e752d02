"""`epd tune`."""

from __future__ import annotations

import logging

from ..denoisers.rows import limit_rows
from .inputs import command_line, model_options, typed
from .models import load_model
from .options import Tune

log = logging.getLogger("epd")


def tune(options: Tune) -> int:
    """Finds the best learned solver within a budget here; leaves it and the evidence in `options.out`."""
    from ..evaluation.tune import tune as search
    from ..evaluation.tuned import evidence

    chosen = model_options(options)
    model = limit_rows(load_model(options.model, chosen), options.rows)
    tuned = search(model, options.tune_config(), options.out, conditions=chosen.conditions())
    print(evidence(tuned))
    path = options.out / "solver.json"
    log.info("%s", path)
    log.info("sample:  epd sample --model %s --table %s", command_line(options.model, chosen), typed(path))
    return 0
