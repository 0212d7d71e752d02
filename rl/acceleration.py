"""Learns which network calls of a frozen model can be left out, by rewards alone, as a generator of typed records."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.nn.utils.convert_parameters import parameters_to_vector

from ..accelerators.heads import HeadName, Heads, Layout, Taken, as_map, look, trajectory_log_prob
from ..accelerators.measure import flops_of
from ..denoisers.protocol import Model
from ..denoisers.rows import samples_together
from ..distill.feedback_run import plain_table
from ..runs.processes import Workers
from ..solvers.registry import Ends, make_sigmas
from ..solvers.table import Table
from .acceleration_config import AccelerationConfig
from .acceleration_rollout import costs_of_levels, travel, with_network
from .acceleration_state import AccelerationState, AccelerationUpdate
from .acceleration_tester import AccelerationTester
from .adversary import Adversary, Pair
from .discriminator import Features
from .moments import load_vector, restore, stored
from .objective import BASELINES, approx_kl, clipfrac, clipped_loss
from .step_reward import discounted, with_spread
from .task import Draws, Task, without_lost

TOLD = ("losses/policy_loss", "losses/approx_kl", "losses/clipfrac", "losses/entropy")


@dataclass(frozen=True)
class Part:
    """What a process keeps of its part of an update: decisions of samples from 0, their log probability then, and what
    a discriminator sees.
    """

    taken: dict[HeadName, Taken]
    old: Tensor
    pair: Pair | None


class AccelerationTrainer:
    """Maximise E (q + weight d) f(K) over the heads by clipped policy gradients, prompts alone; the model is frozen.

    J = mean min(A rho, A clip(rho, 1 - clip, 1 + clip)), rho the ratio of a trajectory's probabilities, A what it earns
    compared with the others of its prompt. Reference: arXiv 2509.22323.

    Args:
        task: a model without a network is given one, see `AsNetwork`.
        table: the plain solver, with one question of one point in each step; None: Euler on the config's grid.
        workers: processes that share the parts of an update.
        features: of pictures, for the discriminator that the config asks for.

    Raises:
        ValueError: for another table, or a discriminator without features.
    """

    def __init__(
        self,
        task: Task,
        table: Table | None,
        config: AccelerationConfig,
        workers: Workers | None = None,
        features: Features | None = None,
    ) -> None:
        if (config.discriminator > 0) != (features is not None):
            has = "needs features" if features is None else "has no use for features"
            raise ValueError(
                f"discriminator = {config.discriminator:g} {has} of pictures (--features file.py:function): give both, "
                "or neither"
            )
        self.task, self.config, self.workers = with_network(task), config, workers or Workers()
        self.table = grid_table(task.model, config) if table is None else table
        self.can_be_shorter = self.table.digest == grid_table(task.model, config).digest
        require_single(self.table)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        channels = as_map(torch.zeros(1, *task.model.shape), config.map_size).shape[1]
        levels = config.levels if "sparse" in config.heads else ()
        costs = costs_of_levels(self.task, self.table, levels, config.block, self.dtype) if levels else ()
        self.layout = Layout(
            channels, self.table.num_steps, config.heads, levels, costs, config.channels, config.map_size, config.jump,
            config.sharpness, config.explored, config.block,
        )  # fmt: skip
        self.heads = Heads(self.layout, config.seed).to(task.model.device)
        self.tester = AccelerationTester(self.task, self.table, config, self.workers)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=config.lr, foreach=False)
        self.adversary = None
        if features is not None:
            self.adversary = Adversary(self.task, self.table, features, config, self.workers)

    def updates(self, state: AccelerationState | None = None) -> Iterator[AccelerationUpdate]:
        """The rest of the updates; `state` of an earlier run of the same task and config continues it bit for bit.

        Raises:
            RewardError: where a reward fails; what was learned so far is in the last update's state.
            FloatingPointError: where all samples of an update lead out of the finite numbers.
        """
        total = self.config.steps
        if state is not None and state.iteration < total and self.tester.changed(state.given):
            # No gain may be the difference between two rewards.
            state = replace(state, given=self.tester.plain(), passed=None, best=self._start())
        state = state or self.first()
        while state.iteration < total:
            tick = time.perf_counter()
            state, scalars = self._updated(state)
            tested = None
            if state.iteration % self.config.evaluate_every == 0 or state.iteration == total:
                load_vector(self.heads, state.vector)
                state, tested = self.tester.test(state, self.heads)
            yield AccelerationUpdate(state.iteration, total, scalars, tested, state, time.perf_counter() - tick)

    def first(self) -> AccelerationState:
        """Before the first update."""
        vector = self._start()
        judge = torch.zeros(3, 0) if self.adversary is None else self.adversary.first()
        return AccelerationState(0, vector, vector.new_zeros(2, len(vector)), 0, self.tester.plain(), 0, vector, judge)

    def _start(self) -> Tensor:
        """The heads as they begin."""
        vector = parameters_to_vector(Heads(self.layout, self.config.seed).parameters()).detach()
        return vector.to(self.task.model.device)

    def finished(self, state: AccelerationState) -> Heads:
        """What a run leaves: the best that passed its test, or the start, which computes everything."""
        load_vector(self.heads, state.best)
        return self.heads

    def share_of_heads(self) -> float:
        """What the heads' decisions of a step cost beside a network call of one row, in floating point operations."""
        model = self.task.model
        row, one = as_map(torch.zeros(1, *model.shape, device=model.device), self.config.map_size), torch.ones(1).long()
        seen = look(row, row, 1.0, 1, one.to(row.device), one.to(row.device), one.to(row.device))
        x, level = torch.zeros(1, *model.shape, device=model.device), torch.tensor(model.sigma_max).double()
        with torch.no_grad():
            own = flops_of(lambda: [self.heads.outputs(head, seen) for head in self.layout.heads])
            call = flops_of(lambda: model.for_seeds([0])(x, level))
        return own / max(call, 1)

    def _updated(self, state: AccelerationState) -> tuple[AccelerationState, dict[str, float]]:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.iteration)
        load_vector(self.heads, state.vector)
        draws = self.task.draw(config.groups, config.group_size, config.shared_noise, generator)
        seeds = torch.randint(2**62, (config.samples,), generator=generator).tolist()
        if self.adversary is not None:
            self.adversary.load(state.judge)
        raw, calls, real, parts = self._sampled(draws, seeds)
        named = dict(zip(self.task.scores, raw, strict=True))
        quality = self.tester.quality(named, state.given)
        rewards = discounted(quality, calls, config.decay, real, config.discriminator)
        rewards = rewards.reshape(config.groups, config.group_size)
        telling = with_spread(rewards)
        scalars = {f"rewards/{name}": float(values.mean()) for name, values in named.items()}
        scalars |= {
            "charts/reward_mean": float(rewards.mean()), "charts/quality": float(quality.mean()),
            "charts/calls": float(calls.mean()), "charts/calls_std": float(calls.std()),
            "charts/telling": float(telling.double().mean()),
            "charts/rollouts": float((state.iteration + 1) * config.samples),
        }  # fmt: skip
        if bool(telling.any()):
            advantages = torch.zeros_like(rewards)
            advantages[telling] = BASELINES[config.baseline](rewards[telling])
            kept = telling.repeat_interleave(config.group_size)
            share = 1 - state.iteration / config.steps
            restore(self.optimizer, self.heads, state.moments, state.steps)
            scalars |= self._learned(parts, advantages.flatten(), kept, share)
            vector, moments, steps = stored(self.optimizer, self.heads)
            state = replace(state, vector=vector, moments=moments, steps=steps)
        if self.adversary is not None:
            pairs = {i: part.pair for i, part in parts.items() if part.pair is not None}
            judge, steps, loss = self.adversary.learned(pairs, state.judge, state.judge_steps)
            state = replace(state, judge=judge, judge_steps=steps)
            scalars |= {"discriminator/real": float(real.mean()), "discriminator/loss": loss}
        return replace(state, iteration=state.iteration + 1), scalars

    def _sampled(self, draws: Draws, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, dict[int, Part]]:
        """Scores (S, B), calls (B,) and a discriminator's verdicts (B,) of all samples, and this process's parts.

        A sample that leads out of the finite numbers is as bad as the worst of the others.
        """
        size, kept = len(draws) // self.config.accumulate, dict[int, Part]()
        together = min(samples_together(self.task.model.shape, size), self.task.model.rows())  # a call is not split
        scores = self.task.scores

        def part(i: int) -> Tensor:
            out = torch.zeros(len(scores) + 2, len(draws), dtype=torch.float64)
            features = list[Tensor]()
            taken: dict[HeadName, list[Taken]] = {}
            for first in range(i * size, (i + 1) * size, together):
                rows = slice(first, min(first + together, (i + 1) * size))
                trip = travel(self.task, self.table, self.heads, draws[rows], list(seeds[rows]), self.dtype)
                lost = trip.rollout.states.flatten(1).isfinite().all(1).logical_not()
                beside = lost.reshape(-1, *[1] * (trip.rollout.states.ndim - 1))
                seen = replace(trip.rollout, states=trip.rollout.states.masked_fill(beside, 0.0))
                for row, score in zip(out, scores.values(), strict=False):
                    row[rows] = score(seen).masked_fill(lost.cpu(), math.nan)
                out[-2, rows] = trip.calls
                if self.adversary is not None:
                    features.append(self.adversary.seen(seen))
                    out[-1, rows] = self.adversary.discriminator.real(features[-1])
                for head, own in trip.taken.items():
                    moved = replace(own, samples=own.samples + first - i * size)
                    taken.setdefault(head, []).append(moved)
            joined: dict[HeadName, Taken] = {head: Taken.joined(own) for head, own in taken.items()}
            pair = None
            if self.adversary is not None:
                pair = Pair(self.adversary.plain(draws[i * size : (i + 1) * size]), torch.cat(features))
            with torch.no_grad():
                kept[i] = Part(joined, trajectory_log_prob(self.heads, joined, size)[0], pair)
            return out.flatten()

        parts = self.config.accumulate
        found = (self.workers.mean(parts, (len(scores) + 2) * len(draws), part) * parts).reshape(-1, len(draws))
        return without_lost(found[:-2]), found[-2], found[-1], kept

    def _learned(self, parts: dict[int, Part], advantages: Tensor, kept: Tensor, share: float) -> dict[str, float]:
        """Moves the heads; rates are multiplied by the share of the run that is left. Returns what there is to tell.

        Every part's gradient is that of its own trajectories, and the parts are summed in order: the number of
        processes changes nothing.
        """
        config, count = self.config, int(kept.sum())
        told, norm = torch.zeros(len(TOLD)), torch.zeros(())
        parameters = list(self.heads.parameters())
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * share
        size = len(advantages) // config.accumulate

        def part(i: int) -> Tensor:
            rows = slice(i * size, (i + 1) * size)
            own = kept[rows]
            if not bool(own.any()):
                return torch.zeros(sum(p.numel() for p in parameters) + len(TOLD), dtype=torch.float64)
            log_prob, entropy = trajectory_log_prob(self.heads, parts[i].taken, size)
            weight = int(own.sum()) / count
            new, old = log_prob[own], parts[i].old[own]
            loss, spread = clipped_loss(new, old, advantages[rows][own], config.clip), entropy[own].mean()
            total = weight * (loss - config.entropy * share * spread)
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            flat = [
                torch.zeros(p.numel(), dtype=torch.float64) if g is None else g.flatten().cpu().double()
                for g, p in zip(gradients, parameters, strict=True)
            ]
            seen = [loss.detach(), approx_kl(new, old), clipfrac(new, old, config.clip), spread.detach()]
            return torch.cat([*flat, weight * torch.stack(seen)])

        for _ in range(config.epochs):
            found = self.workers.mean(config.accumulate, sum(p.numel() for p in parameters) + len(TOLD), part)
            *gradient, told = (found * config.accumulate).split([*(p.numel() for p in parameters), len(TOLD)])
            for parameter, values in zip(parameters, gradient, strict=True):
                parameter.grad = values.reshape(parameter.shape).to(parameter.dtype).to(parameter.device)
            norm = clip_grad_norm_(parameters, config.max_grad_norm)
            self.optimizer.step()
        scalars = dict(zip(TOLD, told.tolist(), strict=True))
        return {**scalars, "losses/grad_norm": float(norm), "charts/learning_rate": config.lr * share}


def grid_table(model: Model, config: AccelerationConfig) -> Table:
    """Euler on the config's grid."""
    name, number = config.of_schedule(model.path)
    sigmas = make_sigmas(name, config.grid, Ends.of(model, config.sigma_min, config.sigma_max), number)
    return plain_table(sigmas.tolist(), model)


def require_single(table: Table) -> None:
    """Refuses a table that asks more than once, or for more than one point, in a step.

    Raises:
        ValueError: naming what it asks.
    """
    if table.nfe != table.num_steps or table.num_parallel != 1 or table.moves_first_call:
        raise ValueError(
            f"a table of {table.num_steps} steps, {table.depth} sequential calls and {table.nfe} evaluations: what is "
            "left out are calls of solvers that ask once a step, for one point; give none for Euler, or such a one"
        )
