"""Table -> Table from a teacher's trajectories, as a generator of typed records."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..denoisers.protocol import Denoiser, Model
from ..solvers.table import Provenance, Table
from . import adam, gauss_newton
from .config import DistillConfig
from .families import initial_table, structure
from .objective import Chunk, end_residual
from .parameters import Parameters
from .state import State
from .teacher import Teacher, cache_folder
from .workers import Workers

POOL_SEEDS = 2**30  # training noise lies far above the seeds that people sample with
VALIDATION_SEEDS = 2**30 + 2**29
SPREAD = 0.7  # standard deviation of a random start's unconstrained numbers
CANDIDATES = 24  # random starts that are looked at, forward only, before one is trained


@dataclass(frozen=True)
class Update:
    """One optimiser update.

    Args:
        iteration: updates done; of `total`.
        start: which starting point is tried; equal to their number once the best is trained on.
        loss: root mean square residual of the batch before the update.
        validation: RMSE on held-out noise, where it was measured.
        table: of the present numbers.
        state: to resume from.
        seconds: of this update.
        accepted: False where no step lowered the batch's loss.
    """

    iteration: int
    total: int
    start: int
    loss: float
    validation: float | None
    table: Table
    state: State
    seconds: float
    accepted: bool


@dataclass(frozen=True)
class Plan:
    """What a configuration means for a model, before anything is computed."""

    config: DistillConfig
    table: Table
    learn: tuple[str, ...]
    iterations: int
    restarts: int
    validate_every: int

    @property
    def total(self) -> int:
        """Updates over all starts."""
        return self.restarts * self.config.screening + self.iterations


def make_plan(model: Model, config: DistillConfig, init: Table | None = None) -> Plan:
    """The plan of a run.

    Args:
        init: the table to start from; its structure then replaces the family's.

    Raises:
        ValueError: where config, model and table exclude each other.
    """
    table = init or initial_table(config, model)
    learn = tuple(config.learn or structure(config, model.path).learn)
    if init is not None and init.depth != config.calls:
        raise ValueError(f"the initial table makes {init.depth} sequential calls, calls = {config.calls}: make them equal")
    if config.objective != "end" and "sigmas" in learn:
        learn = tuple(name for name in learn if name != "sigmas")
    if Parameters.of(table, learn).start.numel() == 0:
        raise ValueError(f"nothing to learn: {', '.join(learn)} have no numbers in this structure; choose others")
    gn = config.gauss_newton
    return Plan(
        config=config,
        table=table,
        learn=learn,
        iterations=config.iterations or (24 if gn else 1000),
        restarts=config.restarts if config.restarts is not None else 0,
        validate_every=config.validate_every or (1 if gn else 25),
    )


def distill(
    model: Model,
    plan: Plan,
    state: State | None = None,
    features: nn.Module | None = None,
    cache: Path | None = None,
    workers: Workers | None = None,
) -> Iterator[Update]:
    """Learns the plan's table; the caller keeps what it wants of the updates. The last update's `table` is the best.

    minimise E |x_N(table; noise) - teacher(noise)|^2 over `plan.learn`. Reference: arXiv 2507.14797, Section 3.3;
    end-point objective as in LD3 (arXiv 2405.15506) and S4S (arXiv 2502.17423).

    Args:
        state: of an earlier run of the same plan, to continue it bit for bit.
        features: distance in its outputs is added, weighted by `config.feature_weight`.
        cache: folder of teacher trajectories; none: $EPD_CACHE or ~/.cache/epd.

    Raises:
        FloatingPointError: when the network returns NaN or infinity.
    """
    return _Run(model, plan, features, cache or cache_folder(), workers or Workers()).updates(state)


class _Run:
    """The pieces that every update shares."""

    def __init__(
        self, model: Model, plan: Plan, features: nn.Module | None, cache: Path, workers: Workers
    ) -> None:
        self.model, self.plan, self.config, self.workers = model, plan, plan.config, workers
        if self.config.accumulate < workers.count:
            raise ValueError(f"accumulate = {self.config.accumulate} is below {workers.count} processes: raise it")
        self.parameters = Parameters.of(plan.table, plan.learn)
        self.iterations = plan.iterations
        self.residual = end_residual(features, self.config.feature_weight)
        grid = torch.tensor(plan.table.a("sigmas"))
        grid = grid if self.config.objective != "end" else grid[[0, -1]]
        self.teacher = Teacher(model, self.config, grid, cache)
        for first, count in ((POOL_SEEDS, self.config.pool), (VALIDATION_SEEDS, self.config.validation)):
            self.teacher.prepare(first, count, workers.rank, workers.count)
        workers.wait()
        self.chunks: dict[tuple[int, ...], Chunk] = {}
        self.pool = self.teacher.states(range(POOL_SEEDS, POOL_SEEDS + self.config.pool))
        self.held_out = self._held_out()

    def updates(self, state: State | None) -> Iterator[Update]:
        state = state or self._first()
        while state.iteration < self.plan.total:
            tick = time.perf_counter()
            start = min(state.iteration // self.config.screening, self.plan.restarts)
            if state.iteration == start * self.config.screening and state.iteration:
                state = self._begin(state, start)
            step = gauss_newton.update if self.config.gauss_newton else adam.update
            moved = step(self, state, self._parts(state), functools.cache(functools.partial(self._chunk, state.iteration)))
            state = replace(
                state, iteration=state.iteration + 1, vector=moved.vector, damping=moved.damping, moments=moved.moments
            )
            state, rmse = self._measured(state)
            stop = 0 < self.config.patience <= state.stale and start == self.plan.restarts
            last = stop or state.iteration == self.plan.total
            table = self._table(state.best if last else state.vector, state)
            seconds = time.perf_counter() - tick
            yield Update(
                state.iteration, self.plan.total, start, math.sqrt(moved.loss), rmse, table, state, seconds, moved.accepted
            )
            if last:
                return

    def _measured(self, state: State) -> tuple[State, float | None]:
        """The state with its present numbers held against the best, where they are to be measured."""
        if state.iteration % self.plan.validate_every and not self._ends_start(state.iteration):
            return state, None
        rmse = self._validate(state.vector)
        if rmse < state.best_rmse:
            return replace(state, best=state.vector, best_rmse=rmse, stale=0), rmse
        return replace(state, stale=state.stale + 1), rmse

    def _candidate(self, start: int) -> Tensor:
        """A starting point: the best of CANDIDATES random ones on one held-out part; the first start has the plain one."""
        generator = torch.Generator().manual_seed(self.config.seed * 1000 + start)
        plain = self.parameters.start
        drawn = [plain + SPREAD * torch.randn(plain.shape, generator=generator, dtype=plain.dtype) for _ in range(CANDIDATES)]
        drawn = [plain, *drawn] if start == 0 else drawn
        losses = [self._loss(self.held_out[0], vector) for vector in drawn]
        return drawn[losses.index(min(losses))]

    def _loss(self, chunk: Chunk, vector: Tensor) -> float:
        """Sum of squares to the teacher's end points of one chunk; infinite where the trajectory overflows."""
        try:
            with torch.no_grad():
                return float(end_residual()(self.parameters.coefficients(vector), chunk.denoiser, chunk).square().sum())
        except FloatingPointError:
            return math.inf

    def _parts(self, state: State) -> int:
        """How many parts of the batch this update uses: Gauss-Newton needs little while it is far from the optimum."""
        if not self.config.gauss_newton:
            return self.config.accumulate
        screening = state.iteration < self.plan.restarts * self.config.screening
        done = 0.0 if screening else (state.iteration - state.began + 1) / self.plan.iterations
        return max(self.workers.count, math.ceil(self.config.accumulate * done**2))

    def _ends_start(self, iteration: int) -> bool:
        ends = {self.config.screening * (i + 1) for i in range(self.plan.restarts)} | {self.plan.total}
        return iteration in ends

    def _first(self) -> State:
        vector = self._candidate(0) if self.plan.restarts else self.parameters.start
        none = torch.zeros(2, len(vector), dtype=torch.float64)
        return State(0, 0, vector, vector, self._validate(vector), 0, gauss_newton.DAMPING, none)

    def _begin(self, state: State, start: int) -> State:
        """State at a new start: other numbers, or at last the best of all."""
        vector = self._candidate(start) if start < self.plan.restarts else state.best
        none = torch.zeros_like(state.moments)
        return replace(
            state, began=state.iteration, vector=vector, damping=gauss_newton.DAMPING, moments=none, stale=0
        )

    def _chunk(self, iteration: int, part: int) -> Chunk:
        """One part of an update's batch; a function of the seed, the iteration and the part alone."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + iteration)
        picked = torch.randperm(self.config.pool, generator=generator)[: self.config.batch]
        rows = picked.reshape(self.config.accumulate, -1)[part].tolist()
        seeds = [POOL_SEEDS + row for row in rows]
        return Chunk(self._denoiser(seeds), self.teacher.noise(seeds), self.pool[:, rows])

    def _held_out(self) -> list[Chunk]:
        size = self.config.batch // self.config.accumulate
        seeds = range(VALIDATION_SEEDS, VALIDATION_SEEDS + self.config.validation)
        parts = [list(seeds[i : i + size]) for i in range(0, len(seeds), size)]
        return [Chunk(self._denoiser(p), self.teacher.noise(p), self.teacher.states(p)) for p in parts]

    def _denoiser(self, seeds: list[int]) -> Denoiser:
        denoiser = self.model.for_seeds(seeds)
        config, device = self.config, torch.device(self.model.device).type

        def called(x: Tensor, sigma: Tensor) -> Tensor:
            if config.precision == "no":
                return denoiser(x, sigma)
            with torch.autocast(device, torch.bfloat16 if config.precision == "bf16" else torch.float16):
                return denoiser(x, sigma).to(x.dtype)

        if not config.checkpointing or config.gauss_newton:
            return called
        return lambda x, sigma: checkpoint(called, x, sigma, use_reentrant=False)  # type: ignore[return-value]

    def _validate(self, vector: Tensor) -> float:
        """RMSE to the teacher's end point on held-out noise."""
        def part(i: int) -> Tensor:
            return torch.tensor([self._loss(self.held_out[i], vector)], dtype=torch.float64)

        total = self.workers.mean(len(self.held_out), part) * len(self.held_out)
        count = self.config.validation * self.pool[0, 0].numel()
        return float((total / count).sqrt())

    def _table(self, vector: Tensor, state: State) -> Table:
        config, model = self.config, self.model
        return self.parameters.table(
            vector,
            Provenance(
                model=model.name,
                path=model.path,
                schedule=config.schedule or ("polynomial" if model.path == "ve" else "flow"),
                guidance=model.guidance,
                seed=config.seed,
                config=config.model_dump(mode="json"),
                metrics={"validation_rmse": state.best_rmse} if state.best_rmse < float("inf") else {},
                parent=self.plan.table.digest if self.plan.table.provenance.metrics else "",
            ),
        )
