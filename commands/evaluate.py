"""`epd evaluate`."""

from __future__ import annotations

import logging

import torch

from ..denoisers.rows import RowLimited, limit_rows
from ..evaluation.evaluate import evaluate as measure
from ..evaluation.evaluate import write_evaluation
from ..runs.processes import Workers
from ..solvers.table import Table
from .inputs import fits, model_options, named, texts_of
from .models import load_model
from .options import Evaluate, UsageError

log = logging.getLogger("epd")
OF_TEXT = ("clip-score", "pick-score", "hps", "image-reward")  # rewards that mean nothing without a prompt


def evaluate(options: Evaluate) -> int:
    """Measures the pictures of tables and hand-made solvers and writes the evaluation to `options.out`."""
    if options.reference is None:
        raise UsageError("--reference is missing: give a folder of pictures, a .npz with mu and sigma, or saved ones")
    if not options.tables and not options.solvers:
        raise UsageError("there is nothing to evaluate: give --tables, --solvers, or both")
    if any(calls < 1 for calls in options.calls):
        raise UsageError(f"calls = {list(options.calls)}: sequential calls are at least 1")
    if options.save_reference is not None and options.save_reference.suffix != ".safetensors":
        raise UsageError(f"save_reference = {options.save_reference}: give the file a name that ends in .safetensors")
    workers = Workers.of_accelerate()  # before there is a model: each process takes a device of its own
    conditioning = model_options(options)
    model, tables = workers.together(lambda: _loaded(options))
    texts = texts_of(model, options.model, conditioning)
    textual = [spec for spec in options.reward if spec.partition(":")[0] in OF_TEXT]
    if textual and not any(texts([options.seed])):
        raise UsageError(f"{textual[0]} scores pictures for their prompts, and {model.name} has none: give --prompts")
    evaluation = measure(
        model,
        tables,
        options.features,
        options.reference,
        options.out / "features",
        options.samples,
        options.batch,
        options.seed,
        getattr(torch, options.dtype),
        solvers=options.solvers,
        calls=options.calls,
        rewards={spec: spec for spec in options.reward},
        texts=texts,
        manifold=options.manifold,
        save_reference=options.save_reference,
        conditions=conditioning.conditions(),
        workers=workers,
    )
    if workers.rank == 0:
        paths = write_evaluation(evaluation, options.out)
        print(evaluation.markdown())
        log.info("%s", ", ".join(map(str, paths)))
    workers.end()
    return 0


def _loaded(options: Evaluate) -> tuple[RowLimited, dict[str, Table]]:
    model = limit_rows(load_model(options.model, model_options(options)), options.rows)
    tables = named(options.tables)
    for name, table in tables.items():
        fits(table, model, name)
    return model, tables
