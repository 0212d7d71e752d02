"""Runs the learning of acceleration: run folder, progress, records, checkpoints and resume around its generator."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..accelerators.accelerate import recorded
from ..accelerators.heads import Heads
from ..accelerators.heads_file import Learned, save_heads
from ..accelerators.rapid3 import POLICY
from ..distill.cost import rows_per_second
from ..formats.files import write_atomically
from ..runs.checkpoint import Checkpoint, RunError
from ..runs.folder import Folder
from ..runs.follow import Entry, follow
from ..runs.processes import Workers
from ..runs.records import record_outcome
from ..solvers.provenance import require_path
from ..solvers.table import Table
from ..solvers.table_json import dumps
from .acceleration import AccelerationTrainer, grid_table
from .acceleration_config import AccelerationConfig
from .acceleration_rollout import travel
from .acceleration_state import AccelerationState, AccelerationUpdate, Measured, Passing, Tested
from .conservative import Interval
from .discriminator import Features
from .run import REPORT, identity_of_task
from .task import Task

log = logging.getLogger("epd")
TENSORS = ("vector", "moments", "given", "best", "judge")  # of an AccelerationState; all else in it is numbers
SHOWN = 24  # samples whose decisions are in the report
ALONE = ("rapid3", "reuse", "rehash", "ilf")  # accelerators that answer in a policy's place


def run_acceleration(
    task: Task,
    table: Table | None,
    config: AccelerationConfig,
    out: Path,
    resume: bool = False,
    dry_run: bool = False,
    conditions: Mapping[str, object] | None = None,
    features: Features | None = None,
) -> Path | None:
    """Learns a policy into `out`: policy.safetensors for `epd.RAPID3`, solver.json with the plain solver, report.json,
    config.json, checkpoint.safetensors, history.jsonl, tb/. Returns the policy's path.

    The policy is the best of the tested ones that earned more than the plain solver beyond doubt, or one that computes
    everything where none did; report.json says which, with its interval.

    Args:
        table: the plain solver; None: Euler on the config's grid.
        resume: continue the run in `out` bit for bit; a finished run is left as it is.
        dry_run: print the plan and its cost, learn nothing, return None.
        conditions: what else the run was asked for, ready for JSON; it is not continued with others.
        features: of pictures, for the config's discriminator.

    Raises:
        RunError: where `out` holds another run, or its checkpoint is damaged or of another configuration.
        RewardError: where a reward fails; --resume goes on from the update before.
        ValueError: for a table that asks more than once a step, or a model that leaves out calls already.
    """
    workers = Workers.of_accelerate()
    _require_alone(task)
    table = grid_table(task.model, config) if table is None else table
    first = float(table.sigmas[0])
    require_path(table.provenance.path, first, task.model.path, task.model.name, "take one that was learned for it")
    trainer = AccelerationTrainer(task, table, config, workers, features)
    if dry_run:
        workers.together(lambda: print(forecast(trainer)) if workers.rank == 0 else None)
        return None
    identity = workers.together(lambda: identity_of_task(task, table, config))
    folder = Folder(Path(out), {"conditions": dict(conditions or {}), "learned": "acceleration", **identity})
    held, path = workers.together(lambda: folder.held(resume)), folder.path / POLICY
    if held.finished:
        log.info("%s is finished; nothing to do", folder.path)
        return path
    if config.accumulate < workers.count and workers.rank == 0:
        log.warning(
            "accumulate = %d gives %d of %d processes work: set it to %d or more for all of them to sample",
            config.accumulate, config.accumulate, workers.count, workers.count,
        )  # fmt: skip
    workers.together(lambda: folder.begin() if workers.rank == 0 else None)
    state = trainer.first() if held.checkpoint is None else state_of(held.checkpoint, folder.checkpoint)
    last = follow(trainer.updates(state), entry, folder, workers, state.iteration, config.steps)
    state = state if last is None else last.state
    _finish(trainer, state, folder)
    return path


def _finish(trainer: AccelerationTrainer, state: AccelerationState, folder: Folder) -> None:
    """Measures the result beside the same number of plain steps, which all processes do, and writes it."""
    heads, tester, task = trainer.finished(state), trainer.tester, trainer.task
    found = tester.told(tester.measure(heads), state.given)
    equal = max(2, round(found.calls))
    fewer, report = None, dict[str, Any]()
    if trainer.can_be_shorter:
        table = grid_table(task.model, trainer.config.model_copy(update={"grid": equal}))
        fewer = tester.told_of(tester.plain(table), float(equal), state.given)
    if trainer.workers.rank == 0:
        passed = state.passed
        interval = Interval(0.0, 0.0, 0.0, 0) if passed is None else passed.interval
        told = {"calls": found.calls, "quality": found.means["quality"], "earned": found.earned}
        plain = tester.told_of(state.given, float(trainer.table.nfe), state.given)
        report = {
            "passed": passed is not None, "updates": state.iteration, "tested": state.looks,
            "interval": asdict(interval), "policy": asdict(found), "plain": asdict(plain),
            "same number of plain steps": None if fewer is None else {"steps": equal, **asdict(fewer)},
            "share of the heads": trainer.share_of_heads(),
            "who computes": who_computes(trainer, heads),
        }  # fmt: skip
        levels = tuple(trainer.table.sigmas.tolist())
        save_heads(folder.path / POLICY, heads, Learned(task.model.name, levels, told))
        write_atomically(folder.path / REPORT, (json.dumps(report, indent=2) + "\n").encode())
        gain = {"gain": interval.mean, "gain_low": interval.low, "gain_high": interval.high}
        record_outcome(folder, task.model.name, trainer.table, gain, state.iteration)
        folder.finish(dumps(trainer.table))
        if passed is None:
            log.warning(
                "none of %d tested policies earned more than the plain solver beyond doubt: %s computes everything; a "
                "smaller --decay makes calls dearer", state.looks, folder.path / POLICY,
            )  # fmt: skip
        else:
            log.info(
                "learned %s: %.4g of %d calls a sample (%g to %g), quality %.4g, the plain solver's %.4g, %s",
                folder.path / POLICY, found.calls, trainer.table.nfe, found.least, found.most, found.means["quality"],
                plain.means["quality"],
                "" if fewer is None else f"that of {equal} plain steps {fewer.means['quality']:.4g}",
            )  # fmt: skip
    trainer.workers.wait()


def who_computes(trainer: AccelerationTrainer, heads: Heads) -> list[dict[str, str]]:
    """Of the first held-out samples: what was asked for, and 1 for a step whose call is computed, 0 for another."""
    tester, task = trainer.tester, trainer.task
    trip = travel(task, trainer.table, heads, tester.draws[:SHOWN], None, tester.dtype)
    rows = ["".join(str(int(asked)) for asked in row) for row in trip.computed.T.tolist()]
    return [{"prompt": text, "steps": row} for text, row in zip(trip.rollout.prompts, rows, strict=True)]


def checkpoint_of(state: AccelerationState) -> Checkpoint:
    """A state as tensors and numbers."""
    values = asdict(state)
    tensors = {name: values.pop(name) for name in TENSORS}
    return Checkpoint(tensors, {"acceleration": values})


def state_of(checkpoint: Checkpoint, path: Path) -> AccelerationState:
    """The state in a checkpoint.

    Raises:
        RunError: where it is not that of such a run; `path` says which file it was.
    """
    try:
        numbers = dict(checkpoint.numbers["acceleration"])
        passed = numbers.pop("passed")
        if passed is not None:
            measured = Measured(**passed["measured"])
            passed = Passing(passed["iteration"], Interval(**passed["interval"]), measured)
        tensors = {name: checkpoint.tensors[name] for name in TENSORS}
        return AccelerationState(
            int(numbers["iteration"]), steps=int(numbers["steps"]), looks=int(numbers["looks"]), passed=passed,
            judge_steps=int(numbers["judge_steps"]), **tensors,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is not of learning acceleration ({error}): choose another --out") from error


def entry(update: AccelerationUpdate) -> Entry:
    """What a run keeps of an update."""
    scalars = {**update.scalars, "charts/seconds": update.seconds}
    line: dict[str, Any] = {"seconds": update.seconds, **update.scalars}
    shown = {"earned": f"{update.scalars['charts/reward_mean']:.4g}", "calls": f"{update.scalars['charts/calls']:.4g}"}
    tested = update.tested
    if tested is not None:
        scalars |= scalars_of(tested)
        line["test"] = {
            "policy": asdict(tested.policy), "plain": asdict(tested.plain), "verdict": tested.verdict.value,
            "gain": tested.interval.mean, "low": _finite(tested.interval.low), "high": _finite(tested.interval.high),
        }  # fmt: skip
    passed = update.state.passed
    shown["best"] = "none yet" if passed is None else f"{passed.measured.calls:.4g} calls"
    return Entry(update.iteration, update.total, scalars, line, shown, lambda: checkpoint_of(update.state))


def scalars_of(tested: Tested) -> dict[str, float]:
    """A test by TensorBoard tags."""
    i, own = tested.interval, tested.policy
    out = {f"held_out/{name}": value for name, value in own.means.items()}
    out |= {f"held_out_gain/{name}": value - tested.plain.means[name] for name, value in own.means.items()}
    out |= {"held_out/calls": own.calls, "held_out/least_calls": own.least, "held_out/most_calls": own.most}
    return {**out, "held_out/earned": own.earned, "test/gain": i.mean, "test/low": i.low, "test/high": i.high}


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _require_alone(task: Task) -> None:
    both = [told["name"] for told in recorded(task.model) if told["name"] in ALONE]
    if both:
        raise ValueError(f"the model has {both[0]} already, which answers in a policy's place: leave it out")


def forecast(trainer: AccelerationTrainer) -> str:
    """What --dry-run prints: the policy, what is rewarded, and what it costs at most."""
    config, task, nfe = trainer.config, trainer.task, trainer.table.nfe
    tests = -(-config.steps // config.evaluate_every)
    training, testing = config.steps * config.samples * nfe, (tests + 2) * config.held_out * nfe
    rows = min(task.model.rows(), config.samples // config.accumulate)
    seconds = (training + testing) / rows_per_second(task.model, rows, trainer.dtype)
    weights = ", ".join(f"{task.weights.get(name, 1.0):g} {name}" for name in task.scores)
    parameters = sum(p.numel() for p in trainer.heads.parameters())
    lines = {
        "model": f"{task.model.name} ({task.model.path}, sample shape {tuple(task.model.shape)})",
        "solver": f"{nfe} steps of one call each",
        "policy": f"{' and '.join(config.heads)}, {parameters:,} parameters, {trainer.share_of_heads():.2%} of a call",
        "reward": f"{weights}, discounted by {config.decay:g}; watched: {', '.join(task.watched) or 'nothing'}",
        "updates": f"{config.steps} of {config.groups} prompts x {config.group_size} trajectories",
        "tests": f"{tests} of at most {config.held_out} held-out samples",
        "evaluations": f"at most {training:,} training, {testing:,} testing",
        "seconds": f"at most {seconds:.0f} s here ({seconds / 60:.1f} min) and what heads and rewards take",
    }
    return "\n".join(f"{name:<13}{text}" for name, text in lines.items())
