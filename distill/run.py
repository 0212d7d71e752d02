"""Runs a distillation: run folder, progress, records, checkpoints and resume around the generator in `train.py`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import nn

from ..accelerators.accelerate import recorded
from ..denoisers.fingerprint import conditions_digest, model_identity, weights_digest
from ..denoisers.protocol import Model
from ..runs.checkpoint import Checkpoint, RunError
from ..runs.folder import Folder, identity_of
from ..runs.follow import Entry, follow
from ..runs.processes import Workers
from ..runs.records import record_outcome
from ..runs.table_picture import table_picture
from ..solvers.table import Table, TableError
from ..solvers.table_json import dumps
from .budget import decided, foreseen
from .config import DistillConfig
from .cost import Cost, estimate
from .plan import Plan, make_plan
from .points import settled
from .state import TrainerState
from .straightness import report_straightness
from .teacher import POOL_SEEDS
from .train import distill
from .update import Update, table_at

log = logging.getLogger("epd")
NAMES = {"soap": "SOAP", "adam": "Adam", "gauss-newton": "Gauss-Newton"}
TENSORS = ("vector", "best", "moments")  # of a TrainerState; all else in it is numbers


def run_distill(
    model: Model,
    config: DistillConfig,
    out: Path,
    resume: bool = False,
    dry_run: bool = False,
    init: Table | None = None,
    features: nn.Module | None = None,
    conditions: Mapping[str, object] | None = None,
    smaller: Sequence[Table] = (),
) -> Path | None:
    """Learns a table into `out`: solver.json, config.json, checkpoint.safetensors, tb/. Returns the table's path.

    Args:
        resume: continue the run in `out` bit for bit; a finished run is left as it is.
        dry_run: print the plan and its cost, compute nothing, return None.
        init: table to start from; its structure replaces the family's.
        features: of `distill`.
        conditions: what else the model was asked for, ready for JSON; a run is not continued with others.
        smaller: of `make_plan`.

    Raises:
        RunError: where `out` holds another run, or its checkpoint is damaged or of another configuration.
    """
    workers = Workers.of_accelerate()
    if init is None:
        config = with_points(model, config, [Path(out)] if resume else [], workers)
    plan = workers.together(lambda: make_plan(model, config, init, smaller))
    if dry_run:
        if workers.rank == 0:
            print(forecast(model, plan))
        return None
    identity = workers.together(lambda: _identity(model, plan, features))
    folder = Folder(Path(out), {"conditions": dict(conditions or {}), **identity})  # the telling ones first
    held = workers.together(lambda: folder.held(resume))
    if held.finished:
        _require_whole(folder.table)
        log.info("%s is finished; nothing to do", folder.path)
        return folder.table
    if resume and held.checkpoint is None:
        log.info("%s has no checkpoint yet: starting from the beginning", folder.path)
    workers.together(lambda: _begin(model, folder, held.checkpoint) if workers.rank == 0 else None)
    plan, state = workers.together(lambda: _resumed(plan, held.checkpoint, folder))
    updates = distill(model, plan, state, features, workers=workers)
    last = follow(updates, entry, folder, workers, state.iteration if state else 0, plan.total)
    if last is not None:
        state, plan = last.state, last.plan
    assert state is not None, "a plan has an update at least"
    table = table_at(model, plan, state)
    workers.together(lambda: _finish(model, folder, table, plan.total) if workers.rank == 0 else None)
    log.info("learned %s: %s", folder.table, _verdict(table))
    return folder.table


def with_points(model: Model, config: DistillConfig, held: Sequence[Path], workers: Workers) -> DistillConfig:
    """The config with its points decided, alike in all processes: those of a run in these folders, or measured ones."""
    if config.points != "auto":
        return config
    for folder in held:
        recorded = identity_of(folder).get("config")
        points = recorded.get("points") if isinstance(recorded, dict) else None
        if type(points) is int:
            return config.model_copy(update={"points": points})
    # The first process measures, and all hear of it.
    found = workers.mean(1, 1, lambda _: torch.tensor([settled(model, config).points], dtype=torch.float64))
    return config.model_copy(update={"points": round(float(found))})


def _require_whole(path: Path) -> None:
    """A finished run's table can be read; a disk or an editor may have spoiled it since."""
    try:
        Table.load(path)
    except TableError as error:
        raise RunError(
            f"the run is finished, but its table is damaged ({error}): move {path} elsewhere, and --resume makes it "
            "again from the checkpoint"
        ) from error


def _begin(model: Model, folder: Folder, checkpoint: Checkpoint | None) -> None:
    """What one process does for all before training: how straight the ODE is, and the folder."""
    if checkpoint is None:
        report_straightness(model)
    folder.begin()


def _finish(model: Model, folder: Folder, table: Table, updates: int) -> None:
    rmse = table.provenance.metrics.get("validation_rmse", math.nan)
    record_outcome(folder, model.name, table, {"rmse": rmse}, updates)
    folder.finish(dumps(table))


def _resumed(plan: Plan, checkpoint: Checkpoint | None, folder: Folder) -> tuple[Plan, TrainerState | None]:
    """The plan and the state to go on with; a plan that was fitted to a time keeps the lengths that were decided."""
    if checkpoint is None:
        return plan, None
    state, lengths = state_of(checkpoint, folder.checkpoint)
    return decided(plan, *lengths) if plan.config.minutes is not None else plan, state


def _identity(model: Model, plan: Plan, features: nn.Module | None) -> dict[str, object]:
    """What a checkpoint must agree with: everything that changes the numbers."""
    first = range(POOL_SEEDS, POOL_SEEDS + min(64, plan.config.pool))
    return {
        **model_identity(model),
        **({"accelerators": list(recorded(model))} if recorded(model) else {}),
        "bound conditions": conditions_digest(model, first),
        "features": "" if features is None else weights_digest([features]),
        "config": plan.config.model_dump(mode="json"),  # before the starts: it names the option that they differ by
        "starts": [table.digest for table in plan.tables],
    }


def checkpoint_of(state: TrainerState, plan: Plan) -> Checkpoint:
    """A state, and the plan's lengths: where they were fitted to a time, a resumed run has to keep to them."""
    values = asdict(state)
    tensors = {name: values.pop(name) for name in TENSORS}
    return Checkpoint(tensors, {"state": values, "lengths": [plan.config.screening, plan.iterations]})


def state_of(checkpoint: Checkpoint, path: Path) -> tuple[TrainerState, tuple[int, int]]:
    """The state in a checkpoint and the plan's lengths: updates of screening one start, and of training.

    Raises:
        RunError: where it is not that of a distillation; `path` says which file it was.
    """
    try:
        screening, iterations = checkpoint.numbers["lengths"]
        tensors = {name: checkpoint.tensors[name] for name in TENSORS}
        return TrainerState(**checkpoint.numbers["state"], **tensors), (screening, iterations)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is not of a distillation ({error}): choose another --out") from error


def entry(update: Update) -> Entry:
    """What a run keeps of an update: losses, the optimiser, and where it was measured every number of the table."""
    scalars = {"losses/train_rmse": update.loss, "charts/seconds": update.seconds}
    if update.plan.config.gauss_newton:
        scalars["charts/damping"] = update.state.damping
    pictures = {}
    if update.validation is not None:
        scalars["losses/validation_rmse"] = update.validation
        scalars["losses/best_rmse"] = update.state.best_rmse
        # The table's numbers only where it was measured: a hundred scalars an update cost as much as a small model.
        scalars |= numbers_of(update.table)
        pictures["table"] = table_picture(update.table)
    return Entry(
        iteration=update.iteration,
        total=update.total,
        scalars=scalars,
        line={"loss": update.loss, "validation": update.validation, "start": update.state.start,
              "accepted": update.accepted},
        shown={"loss": f"{update.loss:.4g}", "best": f"{update.state.best_rmse:.4g}"},
        checkpoint=lambda: checkpoint_of(update.state, update.plan),
        pictures=pictures,
    )  # fmt: skip


def _verdict(table: Table) -> str:
    rmse = table.provenance.metrics.get("validation_rmse", math.nan)
    return f"{table.depth} sequential calls, {table.nfe} evaluations, RMSE {rmse:.4g} on held-out noise"


def numbers_of(table: Table) -> dict[str, float]:
    """Every number of a table by a TensorBoard tag, such as `nodes/step2/0`."""
    out = {}
    names = ["sigmas", "nodes", "weights", "slope_scale", "sigma_scale", "anchor_scale", "anchor", "memory"]
    for name in [*names, *(["guidance_scale", "anchor_guidance"] if table.scales_guidance else [])]:
        array = getattr(table, name)
        for index in range(len(array)):
            row = array[index].reshape(-1).tolist()
            out |= {f"{name}/step{index}/{j}": value for j, value in enumerate(row)}
    lookahead = table.effective_lookahead
    for n in range(lookahead.shape[0]):
        for j in range(lookahead.shape[1]):
            out |= {f"lookahead/step{n}/point{j}/{k}": float(v) for k, v in enumerate(lookahead[n, j])}
    return out


def forecast(model: Model, plan: Plan, solved: bool = False) -> str:
    """What --dry-run prints; a plan that is to be fitted to a time is shown at the estimated speed.

    Args:
        solved: the teacher's trajectories are those of a run before it.
    """
    cost = estimate(model, plan, solved)
    if plan.config.minutes is None:
        return describe(model, plan, cost)
    likely = foreseen(plan, cost)
    return describe(model, likely, estimate(model, likely, solved))


def describe(model: Model, plan: Plan, cost: Cost) -> str:
    """The plan and its cost as text, for --dry-run."""
    table, config = plan.tables[0], plan.config
    lines = [
        f"model        {model.name} ({model.path}, sample shape {tuple(model.shape)}, guidance {model.guidance:g})",
        f"structure    {config.family}: {table.num_steps} steps, {table.depth} sequential calls, "
        f"{table.nfe} evaluations a sample, K = {table.num_parallel}, AFS {'on' if table.afs else 'off'}",
        f"learned      {', '.join(plan.learn)}: {cost.parameters} numbers",
        f"starts       {len(plan.tables)} ({', '.join(t.provenance.schedule or 'given' for t in plan.tables)})",
        f"optimiser    {NAMES[config.optimizer]}, "
        f"{plan.total} updates of {'up to ' if config.gauss_newton else ''}{config.batch} samples",
        f"teacher      {config.teacher}, {config.pool} + {config.validation} trajectories",
    ]
    lines += [f"{f.name.replace('_', ' '):<21}{cost.text(f.name)}" for f in fields(cost) if f.name != "parameters"]
    return "\n".join(lines)
