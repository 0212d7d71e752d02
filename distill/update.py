"""What a trainer yields: an optimiser update and the table that it stands for."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch

from ..accelerators.accelerate import recorded
from ..denoisers.protocol import Described, Model
from ..denoisers.rows import RowLimited
from ..solvers.table import Provenance, Table
from .parameters import Parameters
from .plan import Plan
from .state import TrainerState


@dataclass(frozen=True)
class Update:
    """One optimiser update.

    Args:
        iteration: updates done; of `total`.
        loss: root mean square residual of the batch before the update.
        validation: RMSE on held-out noise, where it was measured.
        state: to resume from.
        seconds: of this update.
        accepted: False where no step lowered the batch's loss.
        model, plan: of the run.
    """

    iteration: int
    total: int
    loss: float
    validation: float | None
    state: TrainerState
    seconds: float
    accepted: bool
    model: Model = field(repr=False)
    plan: Plan = field(repr=False)

    @functools.cached_property
    def table(self) -> Table:
        """Of the present numbers; made when it is asked for, as an update of a small model takes hardly longer."""
        return table_at(self.model, self.plan, self.state)


def table_at(model: Model, plan: Plan, state: TrainerState) -> Table:
    """The table of a state's present numbers, with its provenance; an RMSE where it is theirs."""
    config, base = plan.config, plan.tables[state.start]
    whole = model.model if isinstance(model, RowLimited) else model
    described = (whole.prediction, whole.resolution) if isinstance(whole, Described) else ("", ())
    measured = state.start == state.best_start and torch.equal(state.vector, state.best)
    provenance = Provenance(
        model=model.name,
        path=model.path,
        schedule=base.provenance.schedule,
        guidance=model.guidance,
        prediction=described[0] or base.provenance.prediction,
        resolution=described[1] or base.provenance.resolution,
        seed=config.seed,
        config=config.model_dump(mode="json"),
        metrics={"validation_rmse": state.best_rmse} if measured and math.isfinite(state.best_rmse) else {},
        parent=plan.parent or base.provenance.parent,
        accelerators=recorded(model),
        citation=base.provenance.citation,
    )
    return Parameters.of(base, plan.learn).table(state.vector, provenance)
