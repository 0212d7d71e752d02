"""Tables of several counts of calls and points: each run's result is where larger ones may start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import nn

from ..denoisers.protocol import Model
from ..runs.checkpoint import RunError
from ..runs.folder import Folder
from ..runs.processes import Workers
from ..solvers.table import Table
from .config import DistillConfig
from .plan import make_plan, require_learnable
from .run import forecast, run_distill, with_points


def run_each(
    model: Model,
    config: DistillConfig,
    calls: Sequence[int],
    out: Path,
    resume: bool = False,
    dry_run: bool = False,
    features: nn.Module | None = None,
    conditions: Mapping[str, object] | None = None,
    narrower: Mapping[int, Table] = MappingProxyType({}),
) -> dict[int, Path]:
    """Learns a table for each of several counts of calls, into `out`/3-calls, `out`/5-calls and so on, fewest first.

    They share the teacher's trajectories, and each table is grown into a start of the next one: on held-out noise more
    calls are never worse. Arguments and errors are those of `run_distill`; `config.calls` is not used, and
    `config.minutes` are for all together.

    Args:
        narrower: learned tables of fewer points by their calls; widened, they are starts, too.
    """
    _require_no_run_in(out)
    workers, folders = Workers.of_accelerate(), {n: out / f"{n}-calls" for n in sorted(set(calls))}
    config = with_points(model, config, list(folders.values()) if resume else [], workers)
    if dry_run:
        _foreseen(model, config, calls, narrower)
        return {}
    paths: dict[int, Path] = {}
    learned: dict[int, Table] = {}
    for own in of_each(model, config, calls):
        smaller = _smaller(own.calls, learned, narrower)
        path = run_distill(model, own, folders[own.calls], resume, False, None, features, conditions, smaller)
        assert path is not None, "only a dry run has no table"
        paths[own.calls], learned[own.calls] = path, Table.load(path)
    return paths


def run_points(
    model: Model,
    config: DistillConfig,
    calls: Sequence[int],
    points: Sequence[int],
    out: Path,
    resume: bool = False,
    dry_run: bool = False,
    conditions: Mapping[str, object] | None = None,
) -> list[Path]:
    """`run_each` for each number of points, fewest first, into `out`/1-points, `out`/2-points and so on.

    A table of fewer points and as many calls, widened, is a start of the next: on held-out noise more points are never
    worse. `config.points` is not used, and `config.minutes` are for all together.
    """
    _require_no_run_in(out)
    share = None if config.minutes is None else config.minutes / len(points)
    paths: list[Path] = []
    narrower: dict[int, Table] = {}
    configs = [config.model_copy(update={"points": k, "minutes": share}) for k in sorted(points)]
    for own in configs:
        of_each(model, own, calls)  # what cannot be is said before anything is learned
    for own in configs:
        if dry_run:
            narrower = _foreseen(model, own, calls, narrower)
            continue
        folder = out / f"{own.points}-points"
        each = run_each(model, own, calls, folder, resume, conditions=conditions, narrower=narrower)
        paths += each.values()
        narrower = {n: Table.load(path) for n, path in each.items()}
    return paths


def _require_no_run_in(out: Path) -> None:
    """Whoever is given the folder then would get that run's table, and none of those beside it."""
    if Folder(out, {}).table.exists() or Folder(out, {}).checkpoint.exists():
        raise RunError(f"{out} holds a run of its own, and several would go into folders in it: choose another --out")


def _smaller(calls: int, fewer: Mapping[int, Table], narrower: Mapping[int, Table]) -> list[Table]:
    """Of what is learned already, the tables that one of so many calls may start at."""
    beside = [narrower[calls]] if calls in narrower else []
    return beside + [*fewer.values()][-1:]


def _foreseen(
    model: Model, config: DistillConfig, calls: Sequence[int], narrower: Mapping[int, Table]
) -> dict[int, Table]:
    """Prints what each run of `run_each` will do, the teacher being the first one's; tables that stand for theirs."""
    workers = Workers.of_accelerate()
    return workers.together(lambda: _foresee(model, config, calls, narrower) if workers.rank == 0 else {})


def _foresee(
    model: Model, config: DistillConfig, calls: Sequence[int], narrower: Mapping[int, Table]
) -> dict[int, Table]:
    first: dict[int, Table] = {}
    for own in of_each(model, config, calls):
        smaller = _smaller(own.calls, first, narrower)
        plan = make_plan(model, own, smaller=smaller)
        print(forecast(model, plan, solved=bool(smaller)), end="\n\n")
        first[own.calls] = plan.tables[0]
    return first


def of_each(model: Model, config: DistillConfig, calls: Sequence[int]) -> list[DistillConfig]:
    """The config for each count of calls, fewest first, with its share of the minutes; checked before any is learned.

    Raises:
        ValueError: where one of them cannot be learned, naming the remedy.
    """
    counts = sorted(set(calls))
    shares = [None if config.minutes is None else config.minutes * n / sum(counts) for n in counts]
    each = [config.model_copy(update={"calls": n, "minutes": m}) for n, m in zip(counts, shares, strict=True)]
    for own in each:
        require_learnable(model, own)
    return each
