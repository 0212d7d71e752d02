"""Table -> Table by rewards, as a generator of typed records: a one-shot bandit over tables, no critic."""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.convert_parameters import parameters_to_vector

from ..denoisers.rows import samples_together
from ..distill.config import GUIDANCE
from ..runs.processes import Workers
from ..solvers.table import Table
from .config import RefineConfig
from .conservative import level
from .distribution import Samples
from .exploration import exploring, exploring_share, floor_of
from .learning import learned
from .moments import load_vector, restore, stored
from .objective import BASELINES, adapted, normalised
from .parametrisation import PARAMETRISATIONS, Parametrisation
from .policy import Policy
from .starts import best_start, start_tables
from .state import RefineState, Update
from .task import Draws, Task, without_lost
from .testing import Tester
from .whitening import whitening

log = logging.getLogger("epd")


def refine(
    task: Task, base: Table, config: RefineConfig, state: RefineState | None = None, workers: Workers | None = None
) -> Iterator[Update]:
    """Moves a policy over tables towards higher rewards; the caller keeps what it wants of the updates.

    maximise E_{table ~ policy, prompt, noise} reward(picture, prompt) by clipped policy gradients, the model frozen.
    `refined` makes the result of the last update's state. Reference: arXiv 2512.22796.

    Args:
        base: the table that the policy is around; any number of its samples is solved in one network call per stage.
        state: of an earlier run of the same task and config, to continue it bit for bit.

    Raises:
        RewardError: where a reward fails; what was learned so far is in the last update's state.
        FloatingPointError: where every sampled table of an update, or the mean one, leads out of the finite numbers.
    """
    return Refiner(task, base, config, workers or Workers()).updates(state)


def kind_of(config: RefineConfig) -> Parametrisation:
    """What a run's policy samples."""
    kind = PARAMETRISATIONS[config.policy]
    changes = {"concentration": config.concentration, "std": config.std, "scale_std": config.std}
    kind = replace(kind, **{name: value for name, value in changes.items() if value is not None})
    return replace(kind, log_normal=kind.log_normal + GUIDANCE) if config.learn_guidance else kind


def policy_of(task: Task, base: Table, config: RefineConfig) -> Policy:
    """The policy that a run begins with, around the table that it starts at."""
    kind, dtype = kind_of(config), getattr(torch, config.dtype)
    mix = whitening(task, base, kind, config.seed, dtype) if config.policy == "whitened" else None
    return Policy(base, kind, task.context_size, config.hidden, config.seed, mix)


class Refiner:
    """The pieces that every update shares."""

    def __init__(self, task: Task, base: Table, config: RefineConfig, workers: Workers) -> None:
        self.task, self.base, self.config, self.workers = task, base, config, workers
        self.tester = Tester(task, base, config, workers)
        self.around = base  # until the best start is known; what hangs on it is made when it is first asked for

    @functools.cached_property
    def _policies(self) -> tuple[Policy, Policy]:
        policy = policy_of(self.task, self.around, self.config)
        return policy, copy.deepcopy(policy)  # before anything is loaded into it

    @property
    def policy(self) -> Policy:
        """The one that learns."""
        return self._policies[0]

    @property
    def reference(self) -> Policy:
        """The same, as it began."""
        return self._policies[1]

    @functools.cached_property
    def optimizer(self) -> torch.optim.Adam:
        """Of the policy's parameters."""
        return torch.optim.Adam(self.policy.parameters(), lr=self.config.lr, eps=1e-8, foreach=False)

    def updates(self, state: RefineState | None) -> Iterator[Update]:
        began, first = time.perf_counter(), state is None
        starts = start_tables(self.task, self.base, self.config)
        start = best_start(self.task, starts, self.config, self.workers) if state is None else state.start
        self.around = starts[start]
        if state is not None and state.iteration < state.total and self.tester.changed(state.given):
            best = parameters_to_vector(self.reference.parameters()).detach()
            state = replace(state, given=self.tester.given(), passed=None, best=best, recent=state.recent[:0])
        state = state or self._first(start)
        while state.iteration < state.total:
            tick = time.perf_counter()
            state, scalars = self._updated(state)
            if first and self.config.minutes is not None:
                state, first = self._fitted(state, tick - began, time.perf_counter() - tick), False
            evaluation = None
            if state.iteration % self.config.evaluate_every == 0 or state.iteration == state.total:
                load_vector(self.policy, state.vector)
                state, evaluation = self.tester.test(state, self.policy)
            yield Update(state.iteration, state.total, scalars, evaluation, state, time.perf_counter() - tick)

    def _first(self, start: int = 0) -> RefineState:
        vector = parameters_to_vector(self.policy.parameters()).detach()
        return RefineState(
            iteration=0, total=self.config.steps, vector=vector, moments=vector.new_zeros(2, len(vector)), steps=0,
            kl=self.config.kl, given=self.tester.given(), recent=vector.new_zeros(0), looks=0, best=vector, start=start,
        )  # fmt: skip

    def _fitted(self, state: RefineState, start: float, update: float) -> RefineState:
        """The state with as many updates as the minutes allow; the first process's clock counts."""
        assert self.config.minutes is not None, "asked where there are minutes"
        here = torch.tensor([start, update], dtype=torch.float64)
        start, update = self.workers.mean(1, 2, lambda _: here).tolist()
        # Measuring the given table took as long as a test does.
        each = update + start / self.config.evaluate_every
        left = 60 * self.config.minutes - start - update - start
        return replace(state, total=1 + max(0, int(left / each)))

    def _updated(self, state: RefineState) -> tuple[RefineState, dict[str, float]]:
        """The state after one update, and what there is to tell of it."""
        config, task = self.config, self.task
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.iteration)
        load_vector(self.policy, state.vector)
        draws = task.draw(config.groups, config.group_size, config.shared_noise, generator)
        context = task.contexts(draws)
        samples = self.policy.sample(config.samples, generator, context, config.antithetic)
        share, mask = self._exploring(state, generator)
        rows = mask.repeat_interleave(config.group_size)
        if not bool(mask.all()):
            with torch.no_grad():
                given = self.reference(context).expected
            samples = Samples(samples.structure, torch.where(rows[:, None], samples.values, given))
        raw = self._measured(samples, draws)
        rewards = task.combined(raw, self.tester.scales(state.given))
        scalars = {f"rewards/{name}": float(values.mean()) for name, values in raw.items()}
        grouped = rewards.reshape(config.groups, config.group_size)
        scalars |= {
            "charts/reward_mean": float(rewards.mean()), "charts/reward_std": float(grouped.std(1).mean()),
            "charts/rollouts": float((state.iteration + 1) * config.samples), "charts/exploring": share,
        }  # fmt: skip
        if bool(mask.any()):
            advantages = BASELINES[config.baseline](grouped[mask]).flatten()
            advantages = normalised(advantages) if config.normalise else advantages
            restore(self.optimizer, self.policy, state.moments, state.steps)
            kept = None if context is None else context[rows]
            lr = config.lr * (1 - state.iteration / state.total)
            scalars |= learned(
                self.policy, self.reference, self.optimizer, samples[rows], advantages, kept, config, lr, state.kl,
                generator,
            )  # fmt: skip
            vector, moments, steps = stored(self.optimizer, self.policy)
            state = replace(state, vector=vector, moments=moments, steps=steps)
        kl = state.kl
        if config.kl_target is not None and "losses/kl_to_reference" in scalars:
            kl = adapted(kl, scalars["losses/kl_to_reference"], config.kl_target)
        recent = torch.cat([state.recent, grouped[mask].mean(1)])[-config.samples :]
        return replace(state, iteration=state.iteration + 1, kl=kl, recent=recent), scalars

    def _exploring(self, state: RefineState, generator: torch.Generator) -> tuple[float, Tensor]:
        """The share of prompts on which tables are sampled, and which (P,) these are; the others get the given one."""
        if self.config.allowed is None:
            return 1.0, torch.ones(self.config.groups, dtype=torch.bool)
        given = self.tester.reward_of_given(state.given)
        alpha = level(self.config.risk, state.iteration + 1)  # the policy of each update is another
        share = exploring_share(state.recent, given, floor_of(given, self.config.allowed), alpha)
        if share == 0 and state.iteration == 0 and self.workers.rank == 0:
            log.warning(
                "allowed = %g leaves no room for exploring: what %d held-out samples say of the given table is less "
                "sure; give a larger one, or more --held-out samples", self.config.allowed, len(given),
            )  # fmt: skip
        return share, exploring(self.config.groups, share, generator)

    def _measured(self, samples: Samples, draws: Draws) -> dict[str, Tensor]:
        """Every score that is learned from, (P G,) each; parts are dealt out to processes.

        A table that leads out of the finite numbers is as bad as the worst of the others.
        """
        size, dtype = len(draws) // self.config.accumulate, getattr(torch, self.config.dtype)

        together = samples_together(self.task.model.shape, size)  # of large samples few: their pictures are larger

        def part(i: int) -> Tensor:
            out = torch.zeros(len(self.task.scores), len(draws), dtype=torch.float64)
            for first in range(i * size, (i + 1) * size, together):
                rows = slice(first, min(first + together, (i + 1) * size))
                rollout = self.task.roll_out(samples[rows].coefficients(), draws[rows], dtype, check=False)
                lost = rollout.states.flatten(1).isfinite().all(1).logical_not()
                beside = lost.reshape(-1, *[1] * (rollout.states.ndim - 1))
                seen = replace(rollout, states=rollout.states.masked_fill(beside, 0.0))
                nowhere = lost.cpu()
                for row, score in zip(out, self.task.scores.values(), strict=True):
                    row[rows] = score(seen).masked_fill(nowhere, math.nan)
            return out.flatten()

        parts = self.config.accumulate
        all_of_them = self.workers.mean(parts, len(self.task.scores) * len(draws), part) * parts
        return dict(zip(self.task.scores, without_lost(all_of_them.reshape(len(self.task.scores), -1)), strict=True))
