"""How many samples are in memory together while a table is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..accelerators.accelerate import accelerators_of
from ..denoisers.rows import RowLimited, samples_together
from .plan import Plan

JACOBIAN = 2**18  # numbers in the samples whose Jacobian is formed together: 2 MB a column


@dataclass(frozen=True)
class Portions:
    """How many samples are in memory together.

    Args:
        train: samples of a chunk that an optimiser differentiates.
        measure: held-out samples of a chunk, of which end points alone are computed.
        recompute: whether the backward pass recomputes the activations of each network call (SOAP, Adam).
    """

    train: int
    measure: int
    recompute: bool


def portions(model: RowLimited, plan: Plan) -> Portions:
    """The most samples of each kind that the model's row limit and the size of its samples allow.

    SOAP and Adam keep the activations of all calls of a trajectory, `nfe` rows a sample, of two trajectories where two
    objectives are summed. Where a single sample's are more rows than the limit, they are recomputed in the backward
    pass, and then only those of one network call are there.

    Raises:
        ValueError: where calls would be made again under accelerators.
    """
    config = plan.config
    kept = plan.tables[0].nfe * (2 if config.objective == "both" else 1)
    part = config.batch // config.accumulate
    if config.gauss_newton:
        together = max(1, min(part, JACOBIAN // math.prod(model.shape)))
        return Portions(together, samples_together(model.shape, part), False)
    rows = model.rows(gradients=True)
    recompute = config.checkpointing or kept > rows
    if recompute and accelerators_of(model):
        raise ValueError(
            f"activations of {kept} rows a sample are recomputed in the backward pass, where accelerators would take "
            f"the calls for others: give more than {rows} rows, no checkpointing, or optimizer=gauss-newton"
        )
    together = samples_together(model.shape, part if recompute else min(part, rows // kept))
    # These parts are bounded by their activations, and held-out samples keep none.
    return Portions(together, samples_together(model.shape, config.batch), recompute)
