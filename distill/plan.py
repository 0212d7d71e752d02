"""What a configuration means for a model, before anything is computed: starts, learned numbers, lengths of phases."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..denoisers.checks import require_guided
from ..denoisers.gradients import differences_are_rounded, model_has_gradients
from ..denoisers.protocol import Model
from ..solvers.provenance import require_path
from ..solvers.registry import USUAL
from ..solvers.solve import solve
from ..solvers.table import Table, TableError
from ..solvers.table_json import dumps
from . import gauss_newton, soap
from .config import GUIDANCE, DistillConfig, ResolvedConfig
from .families import FAMILIES, structure
from .growth import grown, widened
from .initial import initial_table
from .parameters import Parameters
from .points import settled
from .starts import ADAM_START_COST, ASTRAY, FEWEST_STARTS, HANDMADE_STARTS, START_COST, Look, Start, look_at, starts
from .state import TrainerState
from .teacher import POOL_SEEDS

log = logging.getLogger("epd")
BY_GRADIENTS = ("soap", "adam")
OTHER_ENDS = 0.05  # in log sigma; of what is learned that is nothing
ALONE = 0.6  # share of a start's updates that use one part of the batch


@dataclass(frozen=True)
class Plan:
    """What a configuration means for a model, before anything is computed.

    Args:
        tables: where training starts; more than one: each is trained for `config.screening` updates, then the best on.
        parent: digest of the table that was given to start from.
        inherited: how many of these, the first ones, are learned tables of fewer calls or points.
    """

    config: ResolvedConfig
    tables: tuple[Table, ...]
    learn: tuple[str, ...]
    iterations: int
    parent: str = ""
    inherited: int = 0

    @property
    def screening(self) -> int:
        """Updates before the best start is known."""
        return len(self.tables) * self.config.screening if len(self.tables) > 1 else 0

    def exploring(self, iteration: int) -> bool:
        """Whether an update belongs to one of several starts, not to the best one."""
        return iteration < self.screening

    @property
    def total(self) -> int:
        """Updates over all starts."""
        return self.screening + self.iterations


def make_plan(
    model: Model, config: DistillConfig, init: Table | None = None, smaller: Sequence[Table] = ()
) -> Plan:
    """The plan of a run.

    Args:
        init: the table to start from; its structure then replaces the family's. One of fewer calls is grown.
        smaller: learned tables of fewer calls or points; with as many, each is one start more, where it can be.

    Raises:
        ValueError: where config, model and table exclude each other.
    """
    if init is not None and FAMILIES[config.family].points is None:  # which brings its own
        config = config.model_copy(update={"points": max(1, init.num_parallel)})
    if init is not None:
        _require_range(init, model)
    asked, config = config, _resolved(model, config)
    built = structure(config, model.path)
    learn: tuple[str, ...] = built.learn
    if {*learn} & {*GUIDANCE} or (init is not None and init.scales_guidance):
        require_guided(model)
    own: tuple[Table, ...] = ()
    if init is None:
        own = _inherited(smaller, config.calls, built.width)
        tables = (*own, *_starting_tables(model, config, learn))
    else:
        tables = (_of_calls(init, config.calls),)
    if config.objective != "end":  # states are matched on the starting sigmas, and only one start has them
        learn, tables = tuple(name for name in learn if name != "sigmas"), tables[:1]
    if _numbers(tables[0], learn, asked.optimizer) > soap.MOST and config.optimizer == "soap":
        config = _with_optimizer(model, asked.model_copy(update={"points": config.points}), "adam")
    gn = config.gauss_newton
    return Plan(
        config,
        tables,
        learn,
        config.iterations or ((6 if len(tables) > 1 else 32) if gn else 1200),
        "" if init is None else init.digest,
        min(len(own), len(tables)),
    )


def require_learnable(model: Model, config: DistillConfig) -> None:
    """That the structure can be, and has as many numbers as its optimiser takes: known before anything is evaluated.

    Raises:
        ValueError: where it cannot, naming the remedy.
    """
    learn = structure(config, model.path).learn
    _numbers(initial_table(config.model_copy(update={"schedule": USUAL[model.path]}), model), learn, config.optimizer)


def _numbers(table: Table, learn: Sequence[str], optimizer: str) -> int:
    """How many numbers are learned, by an optimiser that was asked for.

    Raises:
        ValueError: for none, more than it takes, or a table of more than a file holds.
    """
    dumps(table)  # a table that no file can hold is not worth learning
    count = Parameters.of(table, learn).start.numel()
    if count == 0:
        blind = table.num_nodes and 2 not in table.calls and not table.columns
        remedy = "one-call steps look ahead along earlier slopes, give memory = 1 or more" if blind else "choose others"
        raise ValueError(f"nothing to learn: {', '.join(learn)} have no numbers in this structure; {remedy}")
    if optimizer == "soap" and count > soap.MOST:
        raise ValueError(f"optimizer = 'soap' takes at most {soap.MOST} numbers, here are {count}: use 'adam'")
    return count


def _resolved(model: Model, config: DistillConfig) -> ResolvedConfig:
    """The config with points and optimiser chosen: SOAP and Adam only where the model's gradients are true, as a skip
    term trains on without them, silently and to a worse table; Gauss-Newton only where differences are more than
    rounding.

    Raises:
        ValueError: where gradients have to be used and cannot.
    """
    config = settled(model, config)
    resolved = config.resolved(math.prod(model.shape))
    if not resolved.gauss_newton:
        return resolved if _has_gradients(model, config) else _without_gradients(model, config)
    if not _is_rounded(model, config):
        return resolved
    if config.optimizer == "auto" and _has_gradients(model, config):
        log.warning("%s rounds too much for Gauss-Newton's differences: the optimiser is SOAP", model.name)
        return _with_optimizer(model, config, "soap")
    _warn_of_rounding(model)
    return resolved


def _without_gradients(model: Model, config: DistillConfig) -> ResolvedConfig:
    """Gauss-Newton in the place of SOAP, where the config leaves room for it."""
    trouble = f"gradients through {model.name} are missing or wrong (no_grad, detach, or computed outside torch)"
    if config.objective != "end":
        remedy = "objective = 'end', as Gauss-Newton matches ends only"
        raise ValueError(f"objective = {config.objective!r} needs gradients, but {trouble}: mend them, or use {remedy}")
    if config.relax:
        raise ValueError(f"relax = {config.relax:g} needs gradients, but {trouble}: mend them, or use relax = 0")
    if config.precision != "no":
        remedy = "precision = 'no', as Gauss-Newton takes differences"
        raise ValueError(f"precision = {config.precision!r} needs gradients, but {trouble}: mend them, or use {remedy}")
    if config.optimizer in BY_GRADIENTS:
        raise ValueError(
            f"optimizer = {config.optimizer!r}, but {trouble}: mend them, or use 'gauss-newton', which needs none"
        )
    log.warning("%s: the optimiser is Gauss-Newton, which needs none", trouble)
    if _is_rounded(model, config):
        _warn_of_rounding(model)
    return _with_optimizer(model, config, "gauss-newton")


def _with_optimizer(model: Model, config: DistillConfig, name: str) -> ResolvedConfig:
    return config.model_copy(update={"optimizer": name}).resolved(math.prod(model.shape))


def _has_gradients(model: Model, config: DistillConfig) -> bool:
    return model_has_gradients(model, getattr(torch, config.dtype))


def _is_rounded(model: Model, config: DistillConfig) -> bool:
    return differences_are_rounded(model, gauss_newton.EPS[config.dtype], getattr(torch, config.dtype))


def _warn_of_rounding(model: Model) -> None:
    text = "%s rounds too much for Gauss-Newton's differences: expect a worse table, or load the network in float32"
    log.warning(text, model.name)


def _starting_tables(model: Model, config: ResolvedConfig, learn: tuple[str, ...]) -> tuple[Table, ...]:
    """As many starts as their cost allows, the likeliest first; a schedule that does not fit the range is none.

    Raises:
        ValueError: where none does.
    """
    look, tables, fault = look_at(config, model), [], None
    asking = _asking_start(model, config, look)
    for start in (*asking, *starts(config, model.path)):
        try:
            tables.append(initial_table(config, model, start, look))
        except TableError as error:
            log.info("the %s schedule is no start here: %s", start.schedule, error)
            fault = error
        if tables and len(tables) == len(asking) + _affordable(config, tables[0], learn):
            break
    if not tables and fault is not None:
        raise fault
    return tuple(tables)


def _asking_start(model: Model, config: ResolvedConfig, look: Look) -> tuple[Start, ...]:
    """Where an analytic first step leads astray, the hand-made solver that comes nearest, on the trajectories of the
    look: a run that begins there is never worse than it.
    """
    open_ = FAMILIES[config.family].analytic and config.afs is None and config.schedule is None
    if not open_ or "sigmas" not in (config.learn or FAMILIES[config.family].learn):
        return ()
    if config.calls < 2 or look().astray < ASTRAY:
        return ()
    errors = {}
    denoiser = model.for_seeds(list(range(POOL_SEEDS, POOL_SEEDS + len(look().noise))))
    for start in HANDMADE_STARTS[model.path]:
        table = initial_table(config, model, start)
        with torch.no_grad():
            end = solve(table.rule(), denoiser, look().noise, table.sigmas, check=False)
        errors[start] = float((end - look().end).square().mean().nan_to_num(math.inf))
    best = min(errors, key=errors.__getitem__)
    log.info(
        "the analytic slope is %.0f %% wrong at first: multistep of order %d on the %s schedule, without it, is a "
        "start, too", 100 * look().astray, best.order, best.schedule,
    )  # fmt: skip
    return (best,)


def _affordable(config: ResolvedConfig, first: Table, learn: tuple[str, ...]) -> int:
    """How many starts are worth their screening."""
    if config.gauss_newton:
        return max(FEWEST_STARTS, START_COST // max(gauss_newton.evaluations(Parameters.of(first, learn)), 1))
    return max(FEWEST_STARTS, ADAM_START_COST // first.nfe)


def _require_range(init: Table, model: Model) -> None:
    """Refuses a table of another path; one with other ends keeps them, and that is said."""
    high, low = float(init.sigmas[0]), float(init.sigmas[-1])
    remedy = "leave init out, or take a table that was learned for this kind of model"
    require_path(init.provenance.path, high, model.path, model.name, remedy)
    if max(abs(math.log(high / model.sigma_max)), abs(math.log(low / model.sigma_min))) > OTHER_ENDS:
        log.warning(
            "the initial table goes from sigma %g to %g and keeps these ends, %s was trained from %g to %g",
            high, low, model.name, model.sigma_max, model.sigma_min,
        )  # fmt: skip


def _of_calls(init: Table, calls: int) -> Table:
    if init.depth > calls:
        raise ValueError(
            f"the initial table makes {init.depth} sequential calls, calls = {calls}: give as many or more"
        )
    return init if init.depth == calls else grown(init, calls)


def _inherited(smaller: Sequence[Table], calls: int, width: int) -> tuple[Table, ...]:
    """The smaller tables as starts, of as many calls and fan points, as far as they can be."""
    out = []
    for table in smaller:
        try:
            deep = grown(table, calls) if table.depth < calls else table
            out.append(widened(deep, width) if deep.num_nodes < width else deep)
        except ValueError as error:
            log.info("the table of %d calls is no start for %d: %s", table.depth, calls, error)
    return tuple(out)


def parts_at(plan: Plan, iteration: int) -> int:
    """How many parts of the batch an update uses: few while Gauss-Newton is far from the optimum, all at last.

    A start ends with half of the batch, so that starts are compared by what they come to, not by their noise.
    """
    every = plan.config.accumulate
    if not plan.config.gauss_newton or not plan.exploring(iteration) and plan.screening:
        return every
    length = plan.config.screening if plan.exploring(iteration) else plan.iterations
    done = (iteration % length + 1) / length
    grown = max(0.0, (done - ALONE) / (1 - ALONE)) ** 2
    return max(1, math.ceil(grown * (every / 2 if plan.exploring(iteration) else every)))


def finished(plan: Plan, state: TrainerState) -> bool:
    """Whether a run has nothing left to do: all updates done, or no improvement for `patience` measurements."""
    stopped = 0 < plan.config.patience <= state.stale and state.iteration > plan.screening
    return stopped or state.iteration >= plan.total
