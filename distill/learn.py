"""Learning a table from Python: one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..denoisers.checks import checked
from ..denoisers.protocol import Model
from ..solvers.table import Table
from . import train
from .config import DistillConfig
from .plan import Plan, make_plan
from .points import settled
from .run import run_distill
from .several import of_each, run_each
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
        model: a `NetworkDenoiser`, an `own_model`, `from_pipeline(pipe)`, or anything with the members of `Model`;
            `limit_rows(model, 8)` where a network call is to hold no more.
        config: how many calls, which family, which budget.
        out: folder of the run, as of `epd distill`: solver.json, TensorBoard logs and a checkpoint; none: no files but
            the cache of teacher trajectories.
        resume: continue the run in `out`.
        init: table to start from; its structure replaces the family's. One of fewer calls is grown.
        features: distance in this network's outputs is added, weighted by `config.feature_weight`.

    Raises:
        ValueError: for a model that `check_model` refuses (see `denoisers/checks.py`), or a folder that holds another
            run.
        FloatingPointError: when the model returns NaN or infinity.
    """
    model = checked(model, getattr(torch, config.dtype))
    if out is not None:
        path = run_distill(model, config, Path(out), resume, init=init, features=features)
        assert path is not None, "only a dry run has no table"
        return Table.load(path)
    if resume:
        raise ValueError("resume = True needs out=, the folder of the run that is continued")
    return _learned(model, make_plan(model, config, init), features)


def distill_each(
    model: Model,
    calls: Sequence[int] = (3, 5, 7, 9),
    config: DistillConfig = DistillConfig(),  # noqa: B008 - frozen
    out: Path | str | None = None,
    *,
    resume: bool = False,
    features: nn.Module | None = None,
) -> dict[int, Table]:
    """A table for each count of calls, by that count; each is grown into a start of the next: more are never worse.

    Args:
        calls: sequential calls, `config.calls` is not used.
        out: the runs are in `out`/3-calls, `out`/5-calls and so on.

    The other arguments and the errors are those of `distill`; a `config.minutes` is for all tables together.
    """
    model = checked(model, getattr(torch, config.dtype))
    if not calls or min(calls) < 1:
        raise ValueError(f"calls = {list(calls)} must be numbers from 1 on, such as (3, 5, 7, 9)")
    if out is not None:
        paths = run_each(model, config, calls, Path(out), resume, features=features)
        return {n: Table.load(path) for n, path in paths.items()}
    if resume:
        raise ValueError("resume = True needs out=, the folder of the runs that are continued")
    tables: dict[int, Table] = {}
    config = settled(model, config)
    for own in of_each(model, config, calls):
        plan = make_plan(model, own, smaller=[*tables.values()][-1:])
        tables[own.calls] = _learned(model, plan, features)
    return tables


def _learned(model: Model, plan: Plan, features: nn.Module | None) -> Table:
    report_straightness(model)
    *_, last = train.distill(model, plan, features=features)
    return last.table
