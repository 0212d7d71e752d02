"""`epd refine`."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ..denoisers.checks import checked
from ..pipelines.find import find_table
from ..pipelines.options import ModelOptions, read_prompts
from ..rl.learn import score
from ..rl.task import Task
from .inputs import command_line, fits, model_options, texts_of, typed
from .inspect import inspect_run
from .models import load_model
from .options import Refine, RefineAcceleration, UsageError

log = logging.getLogger("epd")
FEW = 10  # prompts of which none is held out


def refine(options: Refine) -> int:
    """Refines a table and writes the run to `options.out`; with `options.dry_run` prints the plan and its cost."""
    from ..rl.run import run_refine
    from ..runs.processes import Workers

    if options.table is None or not options.reward:
        missing = "table" if options.table is None else "reward"
        raise UsageError(f"--{missing} is missing: give the solver to refine and what its pictures are rewarded by")
    require_rewards(options)
    source = options.table
    workers = Workers.of_accelerate()  # before there is a model: each process takes a device of its own
    config, chosen = options.refine_config(), model_options(options)
    base = workers.together(lambda: find_table(source))
    others = workers.together(lambda: tuple(map(find_table, options.starts)))
    task = workers.together(lambda: replace(task_of(options, chosen), starts=others))
    for name, table in zip((source, *options.starts), (base, *others), strict=True):
        fits(table, task.model, name)
    path = run_refine(task, base, config, options.out, options.resume, options.dry_run, chosen.conditions())
    workers.end()
    if path is not None:
        if workers.rank == 0:
            inspect_run(task.model, path, options.inspect, config.converged > 0, config.tolerance)
        same, samples = command_line(options.model, chosen), typed(options.out / "samples")
        log.info("look:    epd table diff %s", typed(options.table, path))
        log.info("sample:  epd sample --model %s --table %s --out %s", same, typed(path), samples)
        log.info("watch:   tensorboard --logdir %s", typed(options.out / "tb"))
    return 0


def require_rewards(options: Refine | RefineAcceleration) -> None:
    """Refuses weights of other rewards, and one that is given twice.

    Raises:
        UsageError: naming it.
    """
    if options.weights and len(options.weights) != len(options.reward):
        raise UsageError(f"{len(options.weights)} weights for {len(options.reward)} rewards: give one for each")
    named = [*options.reward, *options.watch]
    twice = [spec for i, spec in enumerate(named) if spec in named[:i]]
    if twice:
        raise UsageError(f"the reward {twice[0]} is given twice, to --reward or --watch: give it once")


def task_of(options: Refine | RefineAcceleration, chosen: ModelOptions) -> Task:
    """The model with its rewards, and which prompts are trained and tested on."""
    train, held_out = _prompts(options, chosen)
    texts = [*train, *held_out]
    if texts:
        given = {name: getattr(chosen, name) for name in chosen.chosen()}  # a copy would keep the texts it has read
        chosen = ModelOptions(**{**given, "prompts": None, "prompt": tuple(texts)})
    # A level of its own for each row is asked for, too: tables make use of it.
    model = checked(load_model(options.model, chosen), getattr(torch, options.dtype), options.rows)
    scores = {spec: score(spec, model, options.tolerance) for spec in options.reward}
    return Task(
        model=model,
        scores=scores,
        weights=dict(zip(options.reward, options.weights, strict=False)),
        watched={spec: score(spec, model, options.tolerance) for spec in options.watch},
        texts=texts_of(model, options.model, chosen),
        train=tuple(range(len(train))),
        held_out=tuple(range(len(train), len(texts))) or tuple(range(len(train))),
    )


def _prompts(options: Refine | RefineAcceleration, chosen: ModelOptions) -> tuple[list[str], list[str]]:
    """Training prompts, and those that are held out; the latter are none where there are few.

    A prompt may stand there several times, to be trained on more often; it is held out altogether or not at all.
    """
    given = chosen.texts or []
    if options.held_out_prompts is not None:
        if not given:
            raise UsageError("held_out_prompts are given without prompts to train on: give --prompts, too")
        held_out = read_prompts(options.held_out_prompts)
        both = sorted(set(given) & set(held_out))
        if both:
            raise UsageError(f"the prompt {both[0][:80]!r} is trained on and held out, too: leave it out of one")
        return given, held_out
    different = list(dict.fromkeys(given))
    if len(different) < FEW:
        return given, []
    held_out = dict.fromkeys(different[4::5])
    return [text for text in given if text not in held_out], list(held_out)
