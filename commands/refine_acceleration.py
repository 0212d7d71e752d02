"""`epd refine-acceleration`."""

from __future__ import annotations

import logging

from ..pipelines.find import find_table
from .inputs import command_line, fits, model_options, typed
from .options import RefineAcceleration, UsageError
from .refine import require_rewards, task_of

log = logging.getLogger("epd")


def refine_acceleration(options: RefineAcceleration) -> int:
    """Learns a policy and writes the run to `options.out`; with `options.dry_run` prints the plan and its cost."""
    from ..rl.acceleration_run import run_acceleration
    from ..runs.processes import Workers

    if not options.reward:
        raise UsageError("--reward is missing: give what pictures are rewarded by")
    require_rewards(options)
    source = options.table
    workers = Workers.of_accelerate()  # before there is a model: each process takes a device of its own
    config, chosen = options.acceleration_config(), model_options(options)
    table = None if source is None else workers.together(lambda: find_table(source))
    task = workers.together(lambda: task_of(options, chosen))
    if table is not None and source is not None:
        fits(table, task.model, source)
    conditions, features = dict(chosen.conditions()), None
    if options.features is not None:
        from ..evaluation.extractors import load_features

        conditions["features"] = options.features
        features = load_features(options.features, task.model.device)
    path = run_acceleration(
        task, table, config, options.out, options.resume, options.dry_run, conditions, features
    )  # fmt: skip
    workers.end()
    if path is not None:
        log.info(
            "sample:  epd sample --model %s --table %s --accelerate %s --out %s",
            command_line(options.model, chosen), typed(options.out / "solver.json"),
            typed(f"rapid3:policy={options.out}"), typed(options.out / "samples"),
        )  # fmt: skip
        log.info("watch:   tensorboard --logdir %s", typed(options.out / "tb"))
    return 0
