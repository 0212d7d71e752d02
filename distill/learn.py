"""Learning a table from Python: one call."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..denoisers.checks import check_model
from ..denoisers.protocol import Model
from ..solvers.table import Table
from . import train
from .config import DistillConfig
from .plan import make_plan
from .run import run_distill
from .straightness import report_straightness


def distill(
    model: Model,
    config: DistillConfig = DistillConfig(),  # noqa: B008 - frozen
    out: Path | str | None = None,
    *,
    resume: bool = False,
    init: Table | None = None,
    features: nn.Module | None = None,
) -> Table:
    """The table that is learned for a model: minimise E |x_N(table; noise) - teacher(noise)|^2.

    Args:
        model: a `NetworkDenoiser`, an `own_model`, `from_pipeline(pipe)`, or anything with the members of `Model`.
        config: how many calls, which family, which budget.
        out: folder of the run, as of `epd distill`: solver.json, TensorBoard logs and a checkpoint; none: no files but
            the cache of teacher trajectories.
        resume: continue the run in `out`.
        init: table to start from; its structure replaces the family's.
        features: distance in this network's outputs is added, weighted by `config.feature_weight`.

    Raises:
        ValueError: for a model that `check_model` refuses (see `denoisers/checks.py`), or a folder that holds another
            run.
        FloatingPointError: when the model returns NaN or infinity.
    """
    check_model(model, getattr(torch, config.dtype))
    if out is not None:
        path = run_distill(model, config, Path(out), resume, init=init, features=features)
        assert path is not None, "only a dry run has no table"
        return Table.load(path)
    if resume:
        raise ValueError("resume = True needs out=, the folder of the run that is continued")
    plan = make_plan(model, config, init)
    report_straightness(model)
    *_, last = train.distill(model, plan, features=features)
    return last.table
