"""Runs a refinement: run folder, progress, records, checkpoints and resume around the generator in `refine.py`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..accelerators.accelerate import recorded
from ..denoisers.checks import require_guided
from ..denoisers.fingerprint import conditions_digest, model_identity
from ..distill.cost import rows_per_second
from ..distill.run import numbers_of
from ..distill.teacher import EXACT_EVALUATIONS
from ..formats.files import write_atomically
from ..runs.checkpoint import Checkpoint, RunError
from ..runs.folder import Folder
from ..runs.follow import Entry, follow
from ..runs.pictures import tile
from ..runs.processes import Workers
from ..runs.records import record_outcome
from ..runs.table_picture import table_picture
from ..solvers.provenance import require_path
from ..solvers.table import Table
from ..solvers.table_json import dumps
from .acceleration_config import AccelerationConfig
from .closeness import Closeness
from .config import RefineConfig
from .conservative import Interval
from .moments import load_vector
from .policy import Policy
from .policy_file import save_policy
from .refine import kind_of, policy_of, refine
from .starts import own_starts, start_tables
from .state import Passed, RefineState, Update
from .task import Task

log = logging.getLogger("epd")
TENSORS = ("vector", "moments", "given", "recent", "best")  # of a RefineState; all else in it is numbers
REPORT, POLICY = "report.json", "policy.safetensors"


def run_refine(
    task: Task,
    base: Table,
    config: RefineConfig,
    out: Path,
    resume: bool = False,
    dry_run: bool = False,
    conditions: Mapping[str, object] | None = None,
) -> Path | None:
    """Refines a table into `out`: solver.json, policy.safetensors, report.json, config.json, checkpoint.safetensors,
    history.jsonl, tb/. Returns the table's path.

    solver.json is the best of the tested tables that was better than the given one beyond doubt, or the given one
    itself where none was; report.json says which, with its interval.

    Args:
        resume: continue the run in `out` bit for bit; a finished run is left as it is.
        dry_run: print the plan and its cost, learn nothing, return None.
        conditions: what else the run was asked for, ready for JSON; it is not continued with others.

    Raises:
        RunError: where `out` holds another run, or its checkpoint is damaged or of another configuration.
        RewardError: where a reward fails; --resume goes on from the update before.
    """
    workers = Workers.of_accelerate()
    first, remedy = float(base.sigmas[0]), "take one that was learned for it"
    require_path(base.provenance.path, first, task.model.path, task.model.name, remedy)
    for table in own_starts(task, base, config):  # refuses one that it does not fit, before anything is written
        Policy(table, kind_of(config), task.context_size)
    if config.learn_guidance or base.scales_guidance:
        require_guided(task.model)
    if dry_run:
        workers.together(lambda: print(forecast(task, base, config)) if workers.rank == 0 else None)
        return None
    identity = workers.together(lambda: identity_of_task(task, base, config))
    folder = Folder(Path(out), {"conditions": dict(conditions or {}), **identity})
    held = workers.together(lambda: folder.held(resume))
    if held.finished:
        log.info("%s is finished; nothing to do", folder.path)
        return folder.table
    if resume and held.checkpoint is None:
        log.info("%s has no checkpoint yet: starting from the beginning", folder.path)
    if config.accumulate < workers.count and workers.rank == 0:
        log.warning(
            "accumulate = %d gives %d of %d processes work: set it to %d or more for all of them to sample",
            config.accumulate, config.accumulate, workers.count, workers.count,
        )  # fmt: skip
    workers.together(lambda: folder.begin() if workers.rank == 0 else None)
    state = None if held.checkpoint is None else state_of(held.checkpoint, folder.checkpoint)
    done, total = (0, config.steps) if state is None else (state.iteration, state.total)
    last = follow(refine(task, base, config, state, workers), entry, folder, workers, done, total)
    state = last.state if last is not None else state
    assert state is not None, "a run has an update at least"
    final = state
    workers.together(lambda: _finish(task, base, config, final, folder) if workers.rank == 0 else None)
    return folder.table


def best_policy(task: Task, base: Table, config: RefineConfig, state: RefineState) -> Policy:
    """The best that passed its test, or the one around the given table where none did."""
    if state.passed is None:
        return policy_of(task, base, config)
    policy = policy_of(task, start_tables(task, base, config)[state.start], config)
    load_vector(policy, state.best)
    return policy


def refined(
    task: Task, base: Table, config: RefineConfig, state: RefineState, policy: Policy | None = None
) -> Table:
    """The result of a run: the mean table of the best that passed its test, or the given table where none did.

    Args:
        policy: `best_policy`, where it is at hand.
    """
    interval = None if state.passed is None else state.passed.table
    if interval is None:
        return base
    policy = best_policy(task, base, config, state) if policy is None else policy
    table = policy.mean(task.mean_context(config.held_out))
    provenance = replace(
        table.provenance,
        parent=base.digest,
        model=task.model.name,
        guidance=task.model.guidance,
        accelerators=recorded(task.model),
        seed=config.seed,
        config=config.model_dump(mode="json"),
        metrics={"gain": interval.mean, "gain_low": interval.low, "gain_high": interval.high},
    )
    return replace(table, provenance=provenance)


def _finish(task: Task, base: Table, config: RefineConfig, state: RefineState, folder: Folder) -> None:
    policy = best_policy(task, base, config, state)
    table = refined(task, base, config, state, policy)
    refined_table = table is not base
    if state.passed is not None:
        i = state.passed.interval
        log.info(
            "refined %s: the policy of update %d is better by %.3g [%.3g, %.3g] standard deviations of the reward on "
            "%d held-out samples", folder.path, state.passed.iteration, i.mean, i.low, i.high, i.count,
        )  # fmt: skip
        if not refined_table:
            log.warning("no one table is better for all contexts beyond doubt: %s is the given one", folder.table)
    else:
        log.warning(
            "none of %d tested tables was better than the given one beyond doubt: %s is the given one, unchanged; more "
            "--held-out samples see smaller gains", state.looks, folder.table,
        )  # fmt: skip
    report = {
        "refined": refined_table,
        "updates": state.iteration,
        "tested": state.looks,
        "passed": None if state.passed is None else asdict(state.passed),
        "given": base.digest,
        "table": table.digest,
    }
    gained = table.provenance.metrics if refined_table else {"gain": 0.0}
    record_outcome(folder, task.model.name, table, gained, state.iteration)
    save_policy(policy, folder.path / POLICY)
    write_atomically(folder.path / REPORT, (json.dumps(report, indent=2) + "\n").encode())
    folder.finish(dumps(table))


def identity_of_task(task: Task, base: Table, config: RefineConfig | AccelerationConfig) -> dict[str, object]:
    """What a checkpoint must agree with: everything that changes the numbers and can be told beforehand.

    What code does cannot: rewards may be mended before a run goes on. `Tester.changed` sees where their scores differ.
    """
    model = task.model
    asked = list(dict.fromkeys([*task.train, *task.tested(config.held_out).conditions]))
    texts = task.texts(asked)
    return {
        **model_identity(model),
        **({"accelerators": list(recorded(model))} if recorded(model) else {}),
        "rewards": [[name, task.weights.get(name, 1.0)] for name in task.scores],  # their order is that of `given`
        "watched": list(task.watched),
        "conditions of training": list(task.train),
        "held-out conditions": list(task.held_out),
        "texts": f"{len(texts)} ({hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]})",
        "bound conditions": conditions_digest(model, asked[:64]),
        "config": config.model_dump(mode="json"),
        "table": base.digest,
        **({"starts": [table.digest for table in task.starts]} if task.starts else {}),
    }


def checkpoint_of(state: RefineState) -> Checkpoint:
    """A state as tensors and numbers."""
    values = asdict(state)
    tensors = {name: values.pop(name) for name in TENSORS}
    return Checkpoint(tensors, {"state": values})


def state_of(checkpoint: Checkpoint, path: Path) -> RefineState:
    """The state in a checkpoint.

    Raises:
        RunError: where it is not that of a refinement; `path` says which file it was.
    """
    try:
        numbers = dict(checkpoint.numbers["state"])
        passed = numbers.pop("passed")
        if passed is not None:
            of_table = None if passed["table"] is None else Interval(**passed["table"])
            passed = Passed(passed["iteration"], Interval(**passed["interval"]), of_table)
        return RefineState(**numbers, passed=passed, **{name: checkpoint.tensors[name] for name in TENSORS})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is not of a refinement ({error}): choose another --out") from error


def entry(update: Update) -> Entry:
    """What a run keeps of an update: rewards, losses; where it was tested the gain, and every number of the table."""
    scalars = {**update.scalars, "charts/seconds": update.seconds}
    pictures = {}
    shown = {"reward": f"{update.scalars['charts/reward_mean']:.4g}"}
    tested = update.evaluation
    if tested is not None:
        i = tested.interval
        scalars |= {f"held_out/{name}": value for name, value in tested.means.items()}
        scalars |= {f"held_out_gain/{name}": value - tested.given[name] for name, value in tested.means.items()}
        scalars |= {"test/gain": i.mean, "test/low": i.low, "test/high": i.high, "test/samples": float(i.count)}
        scalars |= numbers_of(tested.table)
        pictures["table"] = table_picture(tested.table)
        if tested.pictures is not None:
            pictures["samples"] = tile(tested.pictures, 8)
    passed = update.state.passed
    shown["gain"] = "none yet" if passed is None else f"{passed.interval.mean:.3g} [{passed.interval.low:.3g}, ...]"
    line = {"seconds": update.seconds, **update.scalars}
    if tested is not None:
        line["test"] = {
            "means": dict(tested.means), "given": dict(tested.given), "verdict": tested.verdict.value,
            "gain": tested.interval.mean, "low": _finite(tested.interval.low), "high": _finite(tested.interval.high),
            "samples": tested.interval.count,
        }  # fmt: skip
    return Entry(update.iteration, update.total, scalars, line, shown, lambda: checkpoint_of(update.state), pictures)


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def forecast(task: Task, base: Table, config: RefineConfig) -> str:
    """What --dry-run prints: the policy, what is rewarded, and what it costs."""
    structure = Policy(base, kind_of(config), task.context_size).structure
    tests = -(-config.steps // config.evaluate_every)
    training = config.steps * config.samples * base.nfe
    testing = (1 + tests) * config.held_out * base.nfe
    learned, beside = Closeness.name in task.scores, Closeness.name in task.watched
    each_update = config.groups * (1 if config.shared_noise else config.group_size) if learned else 0
    solved = config.steps * each_update + (config.held_out if learned or beside else config.converged)
    ends = solved * EXACT_EVALUATIONS
    rows = min(task.model.rows(), config.samples // config.accumulate * max(1, base.num_parallel))
    seconds = (training + testing + ends) / rows_per_second(task.model, rows, getattr(torch, config.dtype))
    weights = ", ".join(f"{task.weights.get(name, 1.0):g} {name}" for name in task.scores)
    implied = [Closeness.name] if config.converged and not (learned or beside) else []
    watched = ", ".join([*task.watched, *implied]) or "nothing"
    lines = {
        "model": f"{task.model.name} ({task.model.path}, sample shape {tuple(task.model.shape)}, guidance "
        f"{task.model.guidance:g})",
        "table": f"{base.digest[:8]}: {base.depth} sequential calls, {base.nfe} evaluations a sample",
        "policy": f"{config.policy}: {len(structure.shares)} shares of Dirichlets, {len(structure.std)} normals",
        "reward": f"{weights}; watched: {watched}",
        "updates": f"{config.steps} of {config.groups} prompts x {config.group_size} tables",
        "tests": f"{tests} of at most {config.held_out} held-out samples",
        "evaluations": f"{training:,} training, at most {testing:,} testing, {ends:,} converged end points",
        "seconds": f"about {seconds:.0f} s here ({seconds / 60:.1f} min) and what the rewards take",
    }
    return "\n".join(f"{name:<13}{text}" for name, text in lines.items())
