"""Bounds of values by what episodes have shown: optimistic plans, pessimistic values of any policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .tabular import Array, Correct, backup, checked, evaluate, greedy, initial_of, require_within


@dataclass(frozen=True)
class ExplorationBonus:
    """How far an estimate of r + P V may be from the truth after n visits of a state and action.

        Hoeffding:  b = R sqrt(L / (2 n))
        Bernstein:  b = sqrt(2 Var(V) L / (n - 1)) + 7 R L / (3 (n - 1))
        L = log(4 S A H (n + 2)^2 / delta) + S log 2,    b = R where n = 0,    b <= R always

    R bounds what is still to come: the largest value at the next step, and with it the reward of this one where rewards
    are observed. L counts visits, so the bounds hold at all times together, for any number of episodes.

    `hoeffding` with `strict` is proved for all policies at once: the error is linear in V, so it is largest at one of
    the 2^S extreme V, for which S log 2 pays. The others are in use everywhere, and held in all our runs, but they are
    proved for a V that doesn't depend on the data only.

    Args:
        kind: `both` is the smaller one of the two, each with delta / 2; Hoeffding is smaller for few visits.
        delta: in (0, 1), the probability that any bound fails in any episode.
        union: `simple` leaves S log 2 out.
        unproved_scale: factor of b; below 1 nothing is guaranteed.

    Raises:
        ValueError: for values outside of these.

    References: arXiv 2306.06265 (whose constants we did not have: these are ours); arXiv 0907.3740, Thm. 4.
    """

    kind: Literal["hoeffding", "bernstein", "both"] = "hoeffding"
    delta: float = 0.1
    union: Literal["strict", "simple"] = "strict"
    unproved_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("hoeffding", "bernstein", "both"):
            raise ValueError(f"kind = {self.kind!r} is unknown: give 'hoeffding', 'bernstein' or 'both'")
        if self.union not in ("strict", "simple"):
            raise ValueError(f"union = {self.union!r} is unknown: give 'strict' or 'simple'")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta = {self.delta} must be in (0, 1): the probability of being wrong; 0.1 is usual")
        if not 0 < self.unproved_scale < math.inf:
            raise ValueError(f"unproved_scale = {self.unproved_scale} must be above 0 and finite: 1 is what is proved")

    @property
    def proved(self) -> bool:
        """Whether the guarantee is a theorem for these settings."""
        return self.kind == "hoeffding" and self.union == "strict" and self.unproved_scale >= 1

    def __str__(self) -> str:
        scale = "" if self.unproved_scale == 1 else f", unproved scale {self.unproved_scale:g}"
        return f"{self.kind}, {self.union}{scale}"


@dataclass(frozen=True, eq=False)
class TabularKnowledge:
    """What is known of a process: how often s' followed on (s, a) at step h, and the rewards.

    Args:
        counts: (..., H, S, A, S), at least 0.
        rewards: (..., H, S, A) in [0, 1] where they are known beforehand; None where they are observed, and then
        sums: (..., H, S, A, S) of the observed rewards by the state that followed, and
        squares: (..., H, S, A), sums of their squares.
        initial: (..., S), where episodes begin; by default state 0.
        largest: (H,) bounds of the rewards of each step, in [0, 1]; smaller ones make all bounds tighter.

    Raises:
        ValueError: for other shapes, negative counts, rewards above their bounds, or squares that cannot be.
    """

    counts: Array
    rewards: Array | None = None
    sums: Array | None = None
    squares: Array | None = None
    initial: Array | None = None
    largest: Array | None = None

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts, dtype=np.float64)
        if counts.ndim < 4 or counts.shape[-3] != counts.shape[-1] or 0 in counts.shape:
            raise ValueError(f"counts have shape {counts.shape}, needed (..., H, S, A, S) with none of them 0")
        require_within("counts", counts, 0.0, math.inf)
        largest = np.ones(counts.shape[-4]) if self.largest is None else np.asarray(self.largest, dtype=np.float64)
        if largest.shape != counts.shape[-4:-3]:
            raise ValueError(f"largest has shape {largest.shape}, needed (H,) = {counts.shape[-4:-3]}")
        require_within("largest", largest, 0.0, 1.0)
        if (self.rewards is None) == (self.sums is None) or (self.sums is None) != (self.squares is None):
            raise ValueError("give rewards where they are known, or else sums and squares of those that were observed")
        if self.rewards is not None:
            rewards = np.asarray(self.rewards, dtype=np.float64)
            if rewards.shape[-3:] != counts.shape[-4:-1]:
                raise ValueError(f"rewards have shape {rewards.shape}, needed (..., H, S, A) = {counts.shape[-4:-1]}")
            require_within("rewards", rewards, 0.0, 1.0)
            over = rewards - largest[:, None, None] > 1e-12
            if over.any():
                raise ValueError(f"rewards reach {rewards[over].max()}, above `largest` of their step: raise that")
            object.__setattr__(self, "rewards", np.broadcast_to(rewards, counts.shape[:-1]))
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "largest", largest)
        object.__setattr__(self, "initial", initial_of(self.initial, counts.shape[:-4], counts.shape[-1]))
        if self.sums is not None and self.squares is not None:
            self._require_observed(self.sums, self.squares, counts, largest)

    def _require_observed(self, sums: Array, squares: Array, counts: Array, largest: Array) -> None:
        if sums.shape != counts.shape or squares.shape != counts.shape[:-1]:
            raise ValueError(f"sums {sums.shape} and squares {squares.shape} don't fit counts {counts.shape}")
        bound = largest[:, None, None]
        rounding = 1e-9 * (1 + counts.sum(-1))
        fine = (sums >= 0).all() and (sums <= bound[..., None] * counts + rounding[..., None]).all()
        if not (fine and (squares <= bound * sums.sum(-1) + rounding).all()):
            raise ValueError("observed rewards exceed `largest` of their step, or are negative: scale what you measure")
        if not (squares + rounding >= sums.sum(-1) ** 2 / np.maximum(counts.sum(-1), 1)).all():
            raise ValueError("squares are smaller than rewards of such sums have: give the sums of squared rewards")

    @cached_property
    def visits(self) -> Array:
        """n, (..., H, S, A)."""
        return self.counts.sum(-1)

    @cached_property
    def transitions(self) -> Array:
        """The estimate of P; rows that were never visited are zero."""
        return self.counts / np.maximum(self.visits, 1)[..., None]

    @cached_property
    def means(self) -> Array:
        """The rewards, or the mean of those observed; 0 where there are none."""
        if self.rewards is not None:
            return self.rewards
        assert self.sums is not None
        return self.sums.sum(-1) / np.maximum(self.visits, 1)

    @cached_property
    def ceilings(self) -> Array:
        """(H + 1,): the most that can be earned from each step on."""
        assert self.largest is not None
        return np.append(np.cumsum(self.largest[::-1])[::-1], 0.0)

    def lower(self, policies: ArrayLike, bonus: ExplorationBonus) -> Array:
        """Lower bounds (..., C) of the values of policies (..., C, H, S, A): Q = max(0, r + P V - b)."""
        return self._evaluated(policies, _correction(self, bonus, -1))

    def upper(self, policies: ArrayLike, bonus: ExplorationBonus) -> Array:
        """Upper bounds, likewise: Q = min(ceiling, r + P V + b)."""
        return self._evaluated(policies, _correction(self, bonus, 1))

    def plain(self, policies: ArrayLike) -> Array:
        """The values of policies on the estimate itself, with no bonus."""
        return self._evaluated(policies, lambda h, q, value: q)

    def optimistic(self, bonus: ExplorationBonus) -> tuple[Array, Array]:
        """The greedy policy of the upper bounds Q = min(ceiling, r + P max Q + b), and these, (..., H, S, A)."""
        return greedy(self.transitions, self.means, _correction(self, bonus, 1))

    def pessimistic(self, bonus: ExplorationBonus) -> tuple[Array, Array]:
        """The greedy policy of the lower bounds Q = max(0, r + P max Q - b), and these, (..., H, S, A)."""
        return greedy(self.transitions, self.means, _correction(self, bonus, -1))

    def _evaluated(self, policies: ArrayLike, correct: Correct) -> Array:
        assert self.initial is not None
        return evaluate(self.transitions, self.means, self.initial, checked(policies, self.means.shape), correct)


def _correction(known: TabularKnowledge, bonus: ExplorationBonus, sign: int) -> Correct:
    """r + P V with the bonus added (1) or taken off (-1), between 0 and what can be earned at all."""
    n = known.visits[..., None]
    *_, steps, states, actions = known.means.shape
    delta = bonus.delta / 2 if bonus.kind == "both" else bonus.delta
    level = np.log(4 * states * actions * steps * (n + 2) ** 2 / delta)
    level = level + (states * math.log(2) if bonus.union == "strict" else 0.0)
    hoeffding = np.sqrt(level / (2 * np.maximum(n, 1)))
    root, rest = np.sqrt(2 * level / np.maximum(n - 1, 1)), 7 * level / (3 * np.maximum(n - 1, 1))
    observed = known.rewards is None

    def width(h: int, q: Array, value: Array) -> Array:
        reach = known.ceilings[h] if observed else known.ceilings[h + 1]
        at = (..., h, slice(None), slice(None), slice(None))
        wide = reach * hoeffding[at]
        if bonus.kind != "hoeffding":
            spread = np.sqrt(np.maximum(_second_moment(known, h, value) - _centre(known, h, q) ** 2, 0))
            thin = np.where(n[at] > 1, spread * root[at] + reach * rest[at], reach)
            wide = thin if bonus.kind == "bernstein" else np.minimum(wide, thin)
        wide = np.where(n[at] > 0, bonus.unproved_scale * wide, reach)
        return np.minimum(wide, reach)

    def correct(h: int, q: Array, value: Array) -> Array:
        return np.clip(q + sign * width(h, q, value), 0, known.ceilings[h])

    return correct


def _centre(known: TabularKnowledge, h: int, q: Array) -> Array:
    """Of the random part of r + V: all of it where rewards are observed, V where they are known."""
    return q if known.rewards is None else q - known.means[..., h, :, :, None]


def _second_moment(known: TabularKnowledge, h: int, value: Array) -> Array:
    """Of the same: E[(r + V)^2] or E[V^2] on the estimate."""
    of_values = backup(known.transitions[..., h, :, :, :], value**2)
    if known.sums is None or known.squares is None:
        return of_values
    n = np.maximum(known.visits[..., h, :, :], 1)
    mixed = backup(known.sums[..., h, :, :, :] / n[..., None], value)
    return (known.squares[..., h, :, :] / n)[..., None] + 2 * mixed + of_values
