"""Table -> Table from a teacher's trajectories, as a generator of typed records."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..denoisers.protocol import Denoiser, Model, PassesGuidance, denoised_at
from ..denoisers.rows import limit_rows
from ..runs.processes import Workers
from ..solvers.parallel import Coefficients
from . import adam, gauss_newton, soap
from .budget import Speed, fitted
from .objective import Chunk, end_residual
from .parameters import Parameters
from .plan import Plan, finished, parts_at
from .portions import portions
from .samples import Samples
from .state import TrainerState
from .teacher import POOL_SEEDS, VALIDATION_SEEDS, Teacher, cache_folder
from .update import Update

log = logging.getLogger("epd")
OPTIMIZERS = {"soap": soap, "adam": adam, "gauss-newton": gauss_newton}


def distill(
    model: Model,
    plan: Plan,
    state: TrainerState | None = None,
    features: nn.Module | None = None,
    cache: Path | None = None,
    workers: Workers | None = None,
) -> Iterator[Update]:
    """Learns the plan's table; the caller keeps what it wants of the updates. The last update's `table` is the result.

    minimise E |x_N(table; noise) - teacher(noise)|^2 over `plan.learn`. Reference: arXiv 2507.14797, Section 3.3;
    end-point objective as in LD3 (arXiv 2405.15506) and S4S (arXiv 2502.17423).

    Args:
        state: of an earlier run of the same plan, to continue it bit for bit.
        features: distance in its outputs is added, weighted by `config.feature_weight`.
        cache: folder of teacher trajectories; none: $EPD_CACHE or ~/.cache/epd.

    Raises:
        FloatingPointError: when the network returns NaN or infinity.
    """
    if state is not None and plan.config.minutes is not None:
        raise ValueError(f"minutes = {plan.config.minutes} with a state: give the plan of its update, too")
    began = time.perf_counter()
    trainer = Trainer(model, plan, features, cache or cache_folder(), workers or Workers())
    if plan.config.minutes is not None:
        trainer.fit(60 * plan.config.minutes - (time.perf_counter() - began))
    return trainer.updates(state)


class Trainer:
    """The pieces that every update shares."""

    def __init__(self, model: Model, plan: Plan, features: nn.Module | None, cache: Path, workers: Workers) -> None:
        self.model, self.plan, self.config, self.workers = limit_rows(model), plan, plan.config, workers
        self.portions = portions(self.model, plan)
        if self.config.accumulate < workers.count and workers.rank == 0:
            log.warning(
                "accumulate = %d gives %d of %d processes work: set it to %d or more for all of them to train",
                self.config.accumulate, self.config.accumulate, workers.count, workers.count,
            )  # fmt: skip
        self.starts = [Parameters.of(table, plan.learn) for table in plan.tables]
        self.iterations = plan.iterations
        self.residual = end_residual(features, self.config.feature_weight, self.config.relax)
        sigmas = torch.tensor(plan.tables[0].sigmas)
        self.teacher = Teacher(self.model, self.config, sigmas, cache, ends=self.config.objective == "end")
        for first, count in ((POOL_SEEDS, self.config.pool), (VALIDATION_SEEDS, self.config.validation)):
            workers.together(lambda at=first, n=count: self.teacher.prepare(at, n, workers.rank, workers.count))
        pool = range(POOL_SEEDS, POOL_SEEDS + self.config.pool)
        validation = range(VALIDATION_SEEDS, VALIDATION_SEEDS + self.config.validation)
        # A file that this process alone can't read concerns the others, too, as one that is solved again may fail.
        self.pool = workers.together(lambda: Samples(self.teacher, pool))
        self.validation = workers.together(lambda: Samples(self.teacher, validation))
        self.held_out = torch.arange(self.config.validation).split(self.portions.measure)
        self.numbers = math.prod(model.shape)
        self.scale = adam.first_scale(self.numbers * self.config.batch // self.config.accumulate)

    def fit(self, seconds: float) -> None:
        """Fits the plan to what is left of its time. The updates that are timed for that are thrown away, so that the
        run is the one of a plan that had these lengths from the beginning.
        """
        start, trial = time.perf_counter(), self.updates(None)
        first = next(trial)  # warms up what the second one is timed with
        second = next(trial, first)
        began = time.perf_counter()
        self._validate(second.state)
        measurement = time.perf_counter() - began
        update = max(second.seconds - (0.0 if second.validation is None else measurement), 0.0)
        if self.config.optimizer == "soap":  # the second update makes no eigenbasis, others do
            update += soap.basis_seconds(len(second.state.vector)) / soap.EVERY
        left = seconds - (time.perf_counter() - start)
        here = torch.tensor([left, update / parts_at(self.plan, second.iteration - 1), measurement])
        # The first process's numbers, as all have to decide alike.
        left, part, measurement = self.workers.mean(1, 3, lambda _: here).tolist()
        self.plan = fitted(self.plan, left, Speed(part, measurement))
        self.config, self.iterations = self.plan.config, self.plan.iterations

    def updates(self, state: TrainerState | None) -> Iterator[Update]:
        state = state or self._first()
        while not finished(self.plan, state):
            tick = time.perf_counter()
            state = self._begun(state)
            try:
                state, loss, accepted = self._stepped(state)
            except FloatingPointError as error:
                state, loss, accepted, rmse = self._lost(state, error), math.inf, False, None
            else:
                state, rmse = self._measured(state)
                if finished(self.plan, state):
                    state = self._chosen(state, rmse)
            seconds = time.perf_counter() - tick
            yield Update(state.iteration, self.plan.total, loss, rmse, state, seconds, accepted, self.model, self.plan)

    def _stepped(self, state: TrainerState) -> tuple[TrainerState, float, bool]:
        """The state after one update of the optimiser, the batch's loss before it, and whether it was accepted."""
        step = OPTIMIZERS[self.config.optimizer].update
        parts = parts_at(self.plan, state.iteration)
        part = functools.partial(self._chunks, state.iteration, functools.cache(self._denoiser))
        exploring = self.plan.exploring(state.iteration) or parts < self.config.accumulate
        moved = step(self, state, parts, part, exploring)
        changes = {"vector": moved.vector, "damping": moved.damping, "moments": moved.moments, "scale": moved.scale}
        return replace(state, iteration=state.iteration + 1, **changes), math.sqrt(moved.loss), moved.accepted

    def _lost(self, state: TrainerState, error: FloatingPointError) -> TrainerState:
        """The state after a start whose numbers overflow: the next start, or the end of the run with its best.

        Raises:
            FloatingPointError: where no start came to anything.
        """
        if self.plan.exploring(state.iteration):
            log.warning("start %d of %d is lost: %s", state.start + 1, len(self.starts), error)
            length = self.config.screening
            return replace(state, iteration=(state.iteration // length + 1) * length)
        if math.isinf(state.best_rmse) or torch.equal(state.best, self.starts[state.best_start].start):
            raise FloatingPointError(f"all {len(self.starts)} starts are lost, the last by this: {error}") from error
        log.warning("training ends at update %d with the best numbers so far: %s", state.iteration + 1, error)
        return replace(state, iteration=self.plan.total, vector=state.best, start=state.best_start)

    def _measured(self, state: TrainerState) -> tuple[TrainerState, float | None]:
        """The state with its present numbers held against the best, where they are to be measured."""
        if state.iteration % self.config.validate_every and not self._ends_start(state.iteration):
            return state, None
        rmse = self._validate(state)
        if rmse < state.best_rmse:
            return replace(state, best=state.vector, best_rmse=rmse, best_start=state.start, stale=0), rmse
        return replace(state, stale=state.stale + 1), rmse

    def _chosen(self, state: TrainerState, rmse: float | None) -> TrainerState:
        """The state that a run ends with: its best on held-out noise, or its last where that is as good but for chance.

        Most of the error is that of a few samples between two modes. The best of a dozen measurements is one where few
        of these happen to go astray; on other noise it was up to a fifth worse than what Adam's falling rate comes to
        rest at, or much the same (`digits-exact`, 7 and 9 calls).
        """
        annealed = state.iteration >= self.plan.total and not self.config.gauss_newton
        if annealed and rmse is not None and math.isfinite(rmse) and not self._worse(state):
            first = range(max(1, self.plan.inherited))
            untrained = min(self._validate(replace(state, start=k, vector=self.starts[k].start)) for k in first)
            if rmse <= untrained:  # tables of fewer calls or points are the first starts: more are never worse
                return replace(state, best=state.vector, best_rmse=rmse, best_start=state.start)
        return replace(state, vector=state.best, start=state.best_start)

    def _worse(self, state: TrainerState) -> bool:
        """Whether the last numbers are worse than the best ones by two standard errors of the held-out samples."""
        last = self.parameters(state).coefficients(state.vector)
        best = self.starts[state.best_start].coefficients(state.best)

        def part(i: int) -> Tensor:
            more = self._squares(last, i) - self._squares(best, i)
            return torch.stack([more.sum(), more.square().sum()])

        count = self.config.validation
        mean, square = (self.workers.mean(len(self.held_out), 2, part) * len(self.held_out) / count).tolist()
        return mean > 2 * math.sqrt(max(square - mean**2, 0.0) / count)

    def _ends_start(self, iteration: int) -> bool:
        return iteration == self.plan.total or (
            iteration <= self.plan.screening and iteration % self.config.screening == 0
        )

    def _first(self) -> TrainerState:
        vector = self.starts[0].start
        return TrainerState(0, 0, 0, vector, vector, math.inf, 0, 0, gauss_newton.DAMPING, self._moments(vector))

    def _moments(self, vector: Tensor) -> Tensor:
        """What the optimiser begins with."""
        return (soap if self.config.optimizer == "soap" else adam).moments(len(vector))

    def _begun(self, state: TrainerState) -> TrainerState:
        """The state at the beginning of each start, and at the end of screening; else as it is."""
        n = state.iteration
        if n > self.plan.screening or (n < self.plan.screening and n % self.config.screening):
            return state
        trained_on = n == self.plan.screening
        start = state.best_start if trained_on else n // self.config.screening
        vector = state.best if trained_on else self.starts[start].start
        none, damping = self._moments(vector), gauss_newton.DAMPING
        state = replace(
            state, began=n, start=start, vector=vector, damping=damping, moments=none, stale=0, scale=self.scale
        )
        return self._measured(state)[0]

    def _chunks(self, iteration: int, bound: Callable[[tuple[int, ...]], Denoiser], part: int) -> Iterator[Chunk]:
        """One part of an update's samples, a few at a time; a function of the seed, the iteration and the part alone.

        Parts beyond the batch are other samples while the pool has any.

        Args:
            bound: seeds -> their denoiser; an update asks for the same ones many times.
        """
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + iteration)
        order = torch.randperm(self.config.pool, generator=generator)
        size = self.config.batch // self.config.accumulate
        for rows in order.roll(-part * size)[:size].split(self.portions.train):
            places = rows.tolist()
            denoiser = bound(tuple(POOL_SEEDS + place for place in places))
            yield Chunk(denoiser, *self.pool(places)).to(self.model.device)

    def _denoiser(self, seeds: tuple[int, ...]) -> Denoiser:
        return self.model.split(seeds, self._bound)

    def _bound(self, seeds: Sequence[int]) -> Denoiser:
        kind = torch.device(self.model.device).type
        dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        return _Evaluated(self.model.model.for_seeds(seeds), kind, dtype, self.portions.recompute)

    def _validate(self, state: TrainerState) -> float:
        """RMSE to the teacher's end points on held-out noise."""
        c = self.parameters(state).coefficients(state.vector)
        try:
            total = self.workers.mean(len(self.held_out), 1, lambda i: self._squares(c, i).sum().reshape(1))
            total = total * len(self.held_out)
        except FloatingPointError:
            return math.inf
        return float((total / (self.config.validation * self.numbers)).sqrt())

    def _squares(self, c: Coefficients, part: int) -> Tensor:
        """Squared distance to the teacher's end point of each sample of a held-out part, (B,) float64."""
        places = self.held_out[part].tolist()
        denoiser = self._denoiser(tuple(VALIDATION_SEEDS + place for place in places))
        chunk = Chunk(denoiser, *self.validation(places)).to(self.model.device)
        with torch.no_grad():
            return end_residual()(c, chunk.denoiser, chunk).reshape(len(chunk.noise), -1).square().sum(1).cpu()

    def parameters(self, state: TrainerState) -> Parameters:
        """What the state's vector stands for."""
        return self.starts[state.start]


@dataclass(frozen=True)
class _Evaluated(PassesGuidance):
    """A denoiser as training calls it: under autocast to `dtype` where that is one, its activations perhaps recomputed
    in the backward pass.
    """

    denoiser: Denoiser
    device: str
    dtype: torch.dtype | None
    recompute: bool

    def _denoised(self, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
        if not self.recompute:
            return self._called(x, sigma, factor)
        return checkpoint(self._called, x, sigma, factor, use_reentrant=False)  # type: ignore[return-value]

    def _called(self, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
        if self.dtype is None:
            return denoised_at(self.denoiser, x, sigma, factor)
        with torch.autocast(self.device, self.dtype):
            return denoised_at(self.denoiser, x, sigma, factor).to(x.dtype)
