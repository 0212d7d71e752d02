"""What a refinement is about: a model, rewards, and which prompts it learns and is tested on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..denoisers.rows import RowLimited
from ..distill.teacher import POOL_SEEDS, VALIDATION_SEEDS
from ..solvers.parallel import Coefficients, parallel
from ..solvers.solve import solve
from ..solvers.table import Table
from ..solvers.walk import Rule
from .reward import Normalisation, Reward, combined, measured


@dataclass(frozen=True)
class Draws:
    """Which samples: the seed that each one's condition is bound by, and the seed of its noise."""

    conditions: tuple[int, ...]
    noises: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.noises)

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(self.conditions[rows], self.noises[rows])


@dataclass(frozen=True, eq=False)
class Rollout:
    """Finished samples.

    Args:
        model: that made them.
        draws: which samples these are.
        prompts: text of each one's condition.
        states: (B, *S).
    """

    model: Model
    draws: Draws
    prompts: list[str]
    states: Tensor

    def __getitem__(self, rows: slice) -> Rollout:
        """Some of them, with their pictures where there are any yet."""
        part = Rollout(self.model, self.draws[rows], self.prompts[rows], self.states[rows])
        if "images" in vars(self):
            vars(part)["images"] = self.images[rows]
        return part

    @functools.cached_property
    def images(self) -> Tensor:
        """(B, C, H, W) in [0, 1]."""
        with torch.no_grad():
            return self.model.decode(self.states)


Score = Callable[[Rollout], Tensor]  # (B,), more is better


def score_of(reward: Reward) -> Score:
    """A reward on pictures and prompts as a score of rollouts."""
    return lambda rollout: measured(reward, rollout.images, rollout.prompts)


@runtime_checkable
class Prompted(Protocol):
    """A model that knows the text of each seed's condition."""

    def prompts_of(self, seeds: Sequence[int]) -> list[str]: ...


def no_text(seeds: Sequence[int]) -> list[str]:
    """Of a model without prompts."""
    return [""] * len(seeds)


@dataclass(frozen=True, eq=False)
class Task:
    """A model, what is rewarded, and which conditions are trained and tested on.

    Args:
        model: frozen; conditions are bound by seeds.
        scores: by name, what is learned from.
        weights: of each; one where it is left out. Each score is measured in standard deviations of the given table's.
        watched: by name, measured on held-out samples only: whoever optimises the others watches these.
        texts: seeds -> prompts, for rewards.
        train, held_out: seeds of the conditions; empty: any, those of training and testing apart from each other.
        context: seeds -> (B, C), what the policy's tables depend on; none: one policy for all conditions.
        starts: other tables that a policy may start at, where the best start is asked for; those of fewer calls are
            grown. What rewards have made of fewer calls is often more than what is near to the converged pictures.
    """

    model: RowLimited
    scores: Mapping[str, Score]
    weights: Mapping[str, float] = field(default_factory=dict)
    watched: Mapping[str, Score] = field(default_factory=dict)
    texts: Callable[[Sequence[int]], list[str]] = no_text
    train: tuple[int, ...] = ()
    held_out: tuple[int, ...] = ()
    context: Callable[[Sequence[int]], Tensor] | None = None
    starts: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError("there is no reward to learn from: give one at least")
        for name in self.weights:
            if name not in self.scores:
                raise ValueError(f"{name!r} is weighed without being learned from: weigh some of {list(self.scores)}")
        for name in self.watched:
            if name in self.scores:
                raise ValueError(f"{name!r} is learned from and watched, too: leave it out of watched, it is recorded")

    def draw(self, groups: int, size: int, shared: bool, generator: torch.Generator) -> Draws:
        """Training samples, group by group: one condition a group, one noise, too, where it is shared."""
        own = torch.randint(POOL_SEEDS, VALIDATION_SEEDS, (groups,), generator=generator)
        if self.train:
            own = torch.tensor(self.train)[torch.randint(len(self.train), (groups,), generator=generator)]
        noises = torch.randint(POOL_SEEDS, VALIDATION_SEEDS, (groups, 1 if shared else size), generator=generator)
        conditions = own[:, None].expand(-1, size)
        return Draws(tuple(conditions.flatten().tolist()), tuple(noises.expand(-1, size).flatten().tolist()))

    def tested(self, count: int) -> Draws:
        """The held-out samples: conditions in turn, other noise each; always the same."""
        noises = range(VALIDATION_SEEDS, VALIDATION_SEEDS + count)
        if not self.held_out:
            return Draws(tuple(noises), tuple(noises))
        return Draws(tuple(self.held_out[i % len(self.held_out)] for i in range(count)), tuple(noises))

    def contexts(self, draws: Draws) -> Tensor | None:
        """What tables depend on, (B, C) float64 on the CPU; none: nothing.

        Raises:
            ValueError: for a context of another shape, or numbers that are not finite.
        """
        if self.context is None:
            return None
        rows = self.context(draws.conditions).detach().cpu().double()  # in this order: MPS has no float64
        if rows.ndim != 2 or len(rows) != len(draws) or not bool(rows.isfinite().all()):
            raise ValueError(
                f"the context of {len(draws)} seeds has shape {tuple(rows.shape)}, or numbers that are not finite: "
                f"return ({len(draws)}, C), a row for each seed"
            )
        return rows

    @property
    def context_size(self) -> int:
        """C, or 0."""
        rows = self.contexts(self.tested(1))
        return 0 if rows is None else rows.shape[1]

    def mean_context(self, count: int) -> Tensor | None:
        """(1, C), of so many held-out samples: that of the one table which stands for all."""
        rows = self.contexts(self.tested(count))
        return None if rows is None else rows.mean(0, keepdim=True)

    def roll_out(self, c: Coefficients, draws: Draws, dtype: torch.dtype, check: bool = True) -> Rollout:
        """Solves the samples; coefficients with a sample axis are one table for each, at no more network calls.

        They stay on the CPU; the walk takes them where it needs them. Raises as `solved`.
        """
        return self.solved(parallel(c), c.sigmas, draws, dtype, check)

    def solved(
        self, rule: Rule, sigmas: Tensor, draws: Draws, dtype: torch.dtype = torch.float32, check: bool = True
    ) -> Rollout:
        """The samples by any rule.

        Raises:
            FloatingPointError: where a state is not finite and that is to be checked.
        """
        noise = unit_noise(draws.noises, self.model.shape, dtype, self.model.device)
        with torch.no_grad():
            states = solve(rule, self.model.for_seeds(draws.conditions), noise, sigmas, check=check)
        return Rollout(self.model, draws, self.texts(draws.conditions), states)

    def combined(self, raw: Mapping[str, Tensor], scales: Mapping[str, Normalisation]) -> Tensor:
        """The weighted sum of the scores that are learned from, each in standard deviations from its mean."""
        names = list(self.scores)
        weights = {name: self.weights.get(name, 1.0) for name in names}
        return combined({name: raw[name] for name in names}, weights, scales)


def without_lost(scores: Tensor) -> Tensor:
    """Scores (S, N), where those of samples that were lost, NaN, are the worst of the others'.

    Raises:
        FloatingPointError: where all are lost.
    """
    lost = scores[0].isnan()
    if bool(lost.all()):
        raise FloatingPointError(
            f"all {len(lost)} sampled tables lead out of the finite numbers: stay nearer to the given one, by a "
            "smaller std, a larger concentration or a smaller lr"
        )
    worst = scores[:, ~lost].min(1, keepdim=True).values
    return torch.where(lost, worst, scores)
