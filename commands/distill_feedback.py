"""`epd distill-feedback`."""

from __future__ import annotations

import logging

from ..denoisers.rows import limit_rows
from .inputs import command_line, model_options, typed
from .models import load_model
from .options import DistillFeedback

log = logging.getLogger("epd")


def distill_feedback(options: DistillFeedback) -> int:
    """Learns feedback and writes the run to `options.out`; with `options.dry_run` prints what it would be."""
    from ..distill.feedback_run import distill_feedback as learn
    from ..distill.feedback_run import forecast
    from ..runs.processes import Workers

    workers = Workers.of_accelerate()  # before there is a model: each process takes a device of its own
    config, chosen = options.feedback_config(), model_options(options)
    model = workers.together(lambda: limit_rows(load_model(options.model, chosen), options.rows))
    if options.dry_run:
        if workers.rank == 0:
            print(forecast(model, config))
        return 0
    path = learn(model, config, options.out, resume=options.resume, conditions=chosen.conditions())
    workers.end()
    log.info(
        "sample:  epd sample --model %s --table %s --accelerate %s --out %s",
        command_line(options.model, chosen), typed(options.out / "solver.json"), typed(f"ilf:module={path}"),
        typed(options.out / "samples"),
    )  # fmt: skip
    log.info("watch:   tensorboard --logdir %s", typed(options.out / "tb"))
    return 0
