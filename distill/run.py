"""Runs a distillation: progress, TensorBoard, checkpoints and resume around the generator in `distill/`."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..denoisers.protocol import Model
from ..formats.files import read_text, write_atomically
from ..runs.processes import Workers
from ..solvers.table import Table
from .config import DistillConfig
from .cost import Cost, estimate
from .plan import Plan, make_plan
from .state import State
from .straightness import report_straightness
from .train import Update, distill, table_at

log = logging.getLogger("epd")
CHECKPOINT_SECONDS = 2.0  # a kill costs at most this much work and one update


class RunError(ValueError):
    """A run folder that cannot be used as asked: the message says what to do."""


@dataclass(frozen=True)
class Folder:
    """Where a run keeps its files."""

    path: Path

    @property
    def table(self) -> Path:
        return self.path / "solver.json"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tb"

    def sweep(self) -> None:
        """Removes what a kill left of unfinished writes."""
        for file in (self.table, self.config, self.checkpoint, self.history):
            for left in self.path.glob(f".{file.name}.*"):
                left.unlink(missing_ok=True)


def run_distill(
    model: Model,
    config: DistillConfig,
    out: Path,
    resume: bool = False,
    dry_run: bool = False,
    init: Table | None = None,
    features: nn.Module | None = None,
    conditions: Mapping[str, object] | None = None,
) -> Path | None:
    """Learns a table into `out`: solver.json, config.json, checkpoint.safetensors, tb/. Returns the table's path.

    Args:
        resume: continue the run in `out` bit for bit; a finished run is left as it is.
        dry_run: print the plan and its cost, compute nothing, return None.
        conditions: what else the model was asked for, ready for JSON; a run is not continued with others.

    Raises:
        RunError: where `out` holds another run, or its checkpoint is damaged or of another configuration.
    """
    plan = make_plan(model, config, init)
    if dry_run:
        print(describe(model, plan, estimate(model, plan)))
        return None
    workers, folder = Workers.of_accelerate(), Folder(Path(out))
    identity = {**_identity(model, plan), "conditions": dict(conditions or {})}
    state = _resumed(folder, identity) if resume else None
    if not resume and (folder.checkpoint.exists() or folder.table.exists()):
        raise RunError(f"{folder.path} already holds a run: add --resume to continue it, or choose another --out")
    if workers.rank == 0:
        folder.sweep()
    if state is not None and folder.table.exists():
        log.info("%s is finished; nothing to do", folder.path)
        return folder.table
    if workers.rank == 0 and state is None:
        report_straightness(model)
        write_atomically(folder.config, (json.dumps(identity, indent=2) + "\n").encode())
    last = _train(model, plan, state, features, workers, folder, identity)
    if workers.rank == 0:
        last.save(folder.table)
        log.info("learned %s: %s", folder.table, _verdict(last))
    workers.wait()
    return folder.table


def _train(
    model: Model, plan: Plan, state: State | None, features: nn.Module | None, workers: Workers, folder: Folder,
    identity: dict[str, object],
) -> Table:  # fmt: skip
    from tqdm import tqdm

    quiet = workers.rank > 0 or log.getEffectiveLevel() > logging.INFO or not sys.stderr.isatty()
    records = Records(folder, plan, state.iteration if state else 0) if workers.rank == 0 else None
    done, latest, saved = (state.iteration if state else 0), state, time.monotonic()
    try:
        with tqdm(total=plan.total, initial=done, disable=quiet, unit="update") as bar:
            for update in distill(model, plan, state, features, workers=workers):
                latest = update.state
                bar.update(1)
                bar.set_postfix(loss=f"{update.loss:.4g}", best=f"{update.state.best_rmse:.4g}")
                if records is None:
                    continue
                records.add(update)
                if time.monotonic() - saved > CHECKPOINT_SECONDS or update.iteration == 1:
                    save_state(folder.checkpoint, update.state, identity)
                    saved = time.monotonic()
    finally:
        if records is not None:
            with contextlib.closing(records):
                if latest is not None:  # Ctrl-C, too, leaves a run to go on with
                    save_state(folder.checkpoint, latest, identity)
    assert latest is not None, "a plan has an update at least"
    return table_at(model, plan, latest)


def _identity(model: Model, plan: Plan) -> dict[str, object]:
    """What a checkpoint must agree with: everything that changes the numbers."""
    return {
        "model": model.name,
        "path": model.path,
        "shape": list(model.shape),
        "guidance": model.guidance,
        "starts": [table.digest for table in plan.tables],
        "config": plan.config.model_dump(mode="json"),
    }


def save_state(path: Path, state: State, identity: dict[str, object]) -> None:
    """A checkpoint as safetensors, atomically: tensors exact, numbers and identity as JSON metadata."""
    tensors = {k: getattr(state, k).clone() for k in ("vector", "best", "moments")}
    numbers = {k: v for k, v in asdict(state).items() if k not in tensors}
    numbers["best_rmse"] = state.best_rmse if math.isfinite(state.best_rmse) else None
    metadata = {"state": json.dumps(numbers), "run": json.dumps(identity)}
    write_atomically(path, save(tensors, metadata))


def load_state(path: Path, identity: dict[str, object]) -> State:
    """The state in a checkpoint of the same run.

    Raises:
        RunError: for a damaged file, or one of another configuration, naming the first entry that differs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in ("vector", "best", "moments")}
        numbers, run = json.loads(metadata["state"]), json.loads(metadata["run"])
        best = math.inf if numbers["best_rmse"] is None else numbers["best_rmse"]
        state = State(**{**numbers, "best_rmse": best}, **tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({str(error)[:120]}): delete it and start again; a solver.json beside it is still good"
        ) from error
    for key, value in identity.items():
        if run.get(key) != value:
            what = _difference(key, run.get(key), value)
            raise RunError(f"{path} is of another run: {what}; use the same options, or another --out")
    if not all(bool(t.isfinite().all()) for t in tensors.values()) or tensors["vector"].ndim != 1:
        raise RunError(f"{path} holds numbers that are not finite: delete it and start again")
    return state


def _difference(key: str, was: object, now: object) -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        key2 = next(k for k in {**was, **now} if was.get(k) != now.get(k))
        return f"{key}.{key2} was {was.get(key2)}, is {now.get(key2)}"
    return f"{key} was {was}, is {now}"


def _resumed(folder: Folder, identity: dict[str, object]) -> State | None:
    if not folder.checkpoint.exists():
        log.info("%s has no checkpoint yet: starting from the beginning", folder.path)
        return None
    return load_state(folder.checkpoint, identity)


def _verdict(table: Table) -> str:
    rmse = table.provenance.metrics.get("validation_rmse", math.nan)
    return f"{table.depth} sequential calls, {table.nfe} evaluations, RMSE {rmse:.4g} on held-out noise"


class Records:
    """TensorBoard scalars and history.jsonl of a run; after a resume they go on where the checkpoint was."""

    def __init__(self, folder: Folder, plan: Plan, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.path.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(folder.tensorboard), purge_step=done + 1)
        self.path = folder.history
        kept = []
        if done and self.path.exists():
            kept = [line for line in read_text(self.path, RunError).splitlines() if _iteration(line) <= done]
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run

    def add(self, update: Update) -> None:
        """One update: losses, the optimiser, and where it was measured every number of the table."""
        scalars = {"losses/train_rmse": update.loss, "charts/seconds": update.seconds}
        if update.plan.config.gauss_newton:
            scalars["charts/damping"] = update.state.damping
        if update.validation is not None:
            scalars["losses/validation_rmse"] = update.validation
            scalars["losses/best_rmse"] = update.state.best_rmse
        # The table's numbers only where it was measured: a hundred scalars an update cost as much as a small model.
        told = numbers_of(update.table) if update.validation is not None else {}
        for name, value in {**scalars, **told}.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, update.iteration)
        line = {"iteration": update.iteration, "loss": update.loss, "validation": update.validation}
        self.file.write(json.dumps({**line, "start": update.state.start, "accepted": update.accepted}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.writer.close()
        self.file.close()


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):  # a line that a kill cut short
        return math.inf


def numbers_of(table: Table) -> dict[str, float]:
    """Every number of a table by a TensorBoard tag, such as `nodes/step2/0`."""
    out = {}
    for name in ("sigmas", "nodes", "weights", "slope_scale", "sigma_scale", "anchor", "memory"):
        array = getattr(table, name)
        for index in range(len(array)):
            row = array[index].reshape(-1).tolist()
            out |= {f"{name}/step{index}/{j}": value for j, value in enumerate(row)}
    ahead = table.effective_lookahead
    for n in range(ahead.shape[0]):
        for j in range(ahead.shape[1]):
            out |= {f"lookahead/step{n}/point{j}/{k}": float(v) for k, v in enumerate(ahead[n, j])}
    return out


def describe(model: Model, plan: Plan, cost: Cost) -> str:
    """The plan and its cost as text, for --dry-run."""
    table, config = plan.tables[0], plan.config
    lines = [
        f"model        {model.name} ({model.path}, sample shape {tuple(model.shape)}, guidance {model.guidance:g})",
        f"structure    {config.family}: {table.num_steps} steps, {table.depth} sequential calls, "
        f"{table.nfe} evaluations a sample, K = {table.num_parallel}, AFS {'on' if table.afs else 'off'}",
        f"learned      {', '.join(plan.learn)}: {cost.parameters} numbers",
        f"starts       {len(plan.tables)} ({', '.join(t.provenance.schedule or 'given' for t in plan.tables)})",
        f"optimiser    {'Gauss-Newton' if config.gauss_newton else 'Adam'}, "
        f"{plan.total} updates of {'up to ' if config.gauss_newton else ''}{config.batch} samples",
        f"teacher      {config.teacher}, {config.pool} + {config.validation} trajectories",
    ]
    lines += [f"{f.name.replace('_', ' '):<21}{cost.text(f.name)}" for f in fields(cost) if f.name != "parameters"]
    return "\n".join(lines)
