"""Runs the learning of feedback: run folder, progress, records, checkpoints and resume around its generator."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ..accelerators.accelerate import recorded
from ..accelerators.feedback_block import Feedback, Loop, Trained, save_feedback
from ..accelerators.ilf import ILF
from ..accelerators.names import label
from ..denoisers.checks import checked
from ..denoisers.fingerprint import conditions_digest, model_identity
from ..denoisers.protocol import Model
from ..runs.checkpoint import Checkpoint, RunError
from ..runs.folder import Folder
from ..runs.follow import Entry, follow
from ..runs.processes import Workers
from ..solvers.provenance import Provenance
from ..solvers.table import Table
from ..solvers.table_json import dumps
from .feedback import FeedbackState, FeedbackTrainer, FeedbackUpdate
from .feedback_config import FeedbackConfig
from .feedback_plan import loop_of
from .teacher import POOL_SEEDS

log = logging.getLogger("epd")
RESULT = "feedback.safetensors"
PARTS = ("now", "first", "second", "best")  # of a FeedbackState, by parameter each


def distill_feedback(
    model: Model,
    config: FeedbackConfig = FeedbackConfig(),  # noqa: B008 - frozen
    out: Path | str = "runs/feedback",
    *,
    resume: bool = False,
    conditions: Mapping[str, object] | None = None,
) -> Path:
    """Learns feedback for a model's network; returns the file for `epd.ILF`, `out`/feedback.safetensors.

    The steps that it was learned on are in `out`/solver.json, as a table that asks once a step. The network stays as it
    is: only the feedback block and its scales, which begin at 0, are learned; what is best on held-out noise is kept,
    at worst scales of 0.

    Args:
        model: `from_pipeline(pipe)` of DiT, PixArt or SD3, or a `NetworkDenoiser` with such a network.
        resume: continue the run in `out` bit for bit; a finished run is left as it is. Processes of torchrun share the
            work of it, `config.accumulate` parts of a batch among them, and learn the same as one.
        conditions: what else the model was asked for, ready for JSON; a run is not continued with others.

    Raises:
        ValueError: for a network that cannot have feedback, or a folder that holds another run.
        FloatingPointError: when the loss is not finite.
    """
    workers = Workers.of_accelerate()
    model, loop = workers.together(lambda: _ready(model, config))
    identity = workers.together(lambda: _identity(model, config, asdict(loop)))
    folder = Folder(Path(out), {"conditions": dict(conditions or {}), **identity})
    path, held = folder.path / RESULT, workers.together(lambda: folder.held(resume))
    if workers.together(lambda: held.finished and path.exists()):
        log.info("%s is finished; nothing to do", folder.path)
        return path
    workers.together(lambda: folder.begin() if workers.rank == 0 else None)
    if config.accumulate < workers.count and workers.rank == 0:
        log.warning(
            "accumulate = %d gives %d of %d processes work: set it to %d or more for all of them to train",
            config.accumulate, config.accumulate, workers.count, workers.count,
        )  # fmt: skip
    trainer = FeedbackTrainer(model, config, workers=workers)
    kept = held.checkpoint
    if kept is None:
        state = trainer.first()
    else:
        state = workers.together(lambda: state_of(kept, folder.checkpoint, trainer.feedback))
    last = follow(trainer.updates(state), entry, folder, workers, state.iteration, config.iterations)
    feedback, trained = trainer.finished(state if last is None else last.state)
    workers.together(lambda: _finish(folder, path, feedback, trained, model) if workers.rank == 0 else None)
    told = trained.metrics
    log.info(
        "learned %s: %d steps at the cost of %.4g, RMSE %.4g on held-out noise; without feedback %.4g, and %.4g in %d "
        "plain steps", path, config.steps, told["cost"], told["validation_rmse"], told["plain_rmse"],
        told["equal_cost_rmse"], told["equal_steps"],
    )  # fmt: skip
    return path


def _finish(folder: Folder, path: Path, feedback: Feedback, trained: Trained, model: Model) -> None:
    """Writes what a run leaves."""
    save_feedback(path, feedback, trained)
    if not folder.table.exists():
        folder.finish(dumps(plain_table(list(trained.sigmas), model)))


def forecast(model: Model, config: FeedbackConfig) -> str:
    """What a run will learn and what its result costs, without computing anything."""
    loop = loop_of(model, config)
    calls = config.steps + len(loop.steps) * (loop.share - 1)
    return "\n".join(
        [
            f"network      {loop.network} of {loop.depth} blocks",
            f"loop         blocks {loop.begin} to {loop.begin + loop.count - 1}, in steps {list(loop.steps)}",
            f"cost         {loop.blocks} blocks a call with feedback, {calls:.4g} plain calls a sample"
            + (f" ({loop.dear()})" if loop.dear() else ""),
            f"updates      {config.iterations} of {config.batch} samples",
            f"teacher      {config.teacher}, {config.pool} + {config.validation} trajectories",
        ]
    )


def plain_table(sigmas: list[float], model: Model) -> Table:
    """One call a step, along the slope at the state."""
    n = len(sigmas) - 1
    return Table(
        sigmas, np.zeros((n, 0)), np.zeros((n, 0)), anchor=np.ones(n), calls=1,
        provenance=Provenance(model=model.name, path=model.path, guidance=model.guidance),
    )  # fmt: skip


def checkpoint_of(state: FeedbackState) -> Checkpoint:
    """A state as tensors and numbers."""
    tensors = {f"{part}/{name}": value for part in PARTS for name, value in getattr(state, part).items()}
    return Checkpoint(tensors, {"feedback": {"iteration": state.iteration, "best_rmse": state.best_rmse}})


def state_of(checkpoint: Checkpoint, path: Path, feedback: Feedback) -> FeedbackState:
    """The state in a checkpoint.

    Raises:
        RunError: where it is not that of such a run; `path` says which file it was.
    """
    try:
        told = checkpoint.numbers["feedback"]
        shapes = {name: value.shape for name, value in feedback.named_parameters()}
        parts = {part: {name: checkpoint.tensors[f"{part}/{name}"] for name in shapes} for part in PARTS}
        for values in parts.values():
            for name, value in values.items():
                if value.shape != shapes[name]:
                    raise ValueError(f"{name} has shape {tuple(value.shape)}, needed {tuple(shapes[name])}")
        return FeedbackState(int(told["iteration"]), best_rmse=float(told["best_rmse"]), **parts)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is not of learning feedback ({error}): choose another --out") from error


def entry(update: FeedbackUpdate) -> Entry:
    """What a run keeps of an update."""
    scales = update.state.now["scale"].tolist()
    scalars = {"losses/train_rmse": update.loss**0.5, "charts/seconds": update.seconds}
    scalars |= {f"scale/{i}": value for i, value in enumerate(scales)}
    if update.validation is not None:
        scalars |= {"losses/validation_rmse": update.validation, "losses/best_rmse": update.state.best_rmse}
    return Entry(
        iteration=update.iteration,
        total=update.total,
        scalars=scalars,
        line={"loss": update.loss, "validation": update.validation, "scale": scales},
        shown={"loss": f"{update.loss:.4g}", "best": f"{update.state.best_rmse:.4g}"},
        checkpoint=lambda: checkpoint_of(update.state),
    )


def _ready(model: Model, config: FeedbackConfig) -> tuple[Model, Loop]:
    """The model, checked, and the loop in its network.

    Raises:
        ValueError: for one that has feedback already, or cannot have any.
    """
    if any(told["name"] == label(ILF("-")) for told in recorded(model)):
        raise ValueError("the model has feedback already: learn another one without --accelerate ilf")
    model = checked(model, getattr(torch, config.dtype))
    return model, loop_of(model, config)


def _identity(model: Model, config: FeedbackConfig, loop: dict[str, object]) -> dict[str, object]:
    """What a checkpoint must agree with: everything that changes the numbers."""
    return {
        **model_identity(model),
        **({"accelerators": list(recorded(model))} if recorded(model) else {}),
        "bound conditions": conditions_digest(model, range(POOL_SEEDS, POOL_SEEDS + min(64, config.pool))),
        "loop": {**loop, "steps": list(config.feedback)},
        "config": config.model_dump(mode="json"),
    }
