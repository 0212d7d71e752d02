"""StepMix and EpsMix: which policy may be played next, so that every episode keeps a floor in expectation.

This is exploration of a tabular process. `exploration.py` keeps a floor on the rewards of a policy over solver tables,
and `conservative.py` tests which of these may be exported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .tabular import Array, Flags, Indices, checked
from .tabular_bounds import ExplorationBonus, TabularKnowledge

PARTS, ROUNDS = 16, 3  # rho is found to 16^-3, which is 12 halvings, in 3 evaluations of 15 policies at once


@dataclass(frozen=True, eq=False)
class Mixture:
    """What is played in the next episode.

    Args:
        policy: (..., H, S, A), played with probability `coin`, otherwise the baseline.
        optimistic: (..., H, S, A), the optimistic policy that is mixed in.
        coin: (...), drawn once an episode; 1 of StepMix, whose policy itself is mixed.
        lower: (...), the lower bound of what is played in expectation.
        start: (...) j: the baseline acts in steps 0 to j - 1, the optimistic policy from j on; H is the baseline.
        rho: (...), the share of the optimistic policy in step j - 1 (StepMix), or `coin` (EpsMix).
        certified: (...), whether `lower` reaches the floor; where not, the baseline is played, safe by assumption.
    """

    policy: Array
    optimistic: Array
    coin: Array
    lower: Array
    start: Indices
    rho: Array
    certified: Flags


class NotCertified(ValueError):
    """Offline data that don't show that a policy keeps the floor."""


def candidates(baseline: ArrayLike, optimistic: ArrayLike) -> Array:
    """pi^0, ..., pi^H (..., H + 1, H, S, A): pi^j is the baseline in steps 0 to j - 1, then the optimistic policy."""
    first, then = np.asarray(baseline, dtype=np.float64), np.asarray(optimistic, dtype=np.float64)
    steps = first.shape[-3]
    follows = np.arange(steps) < np.arange(steps + 1)[:, None]  # (H + 1, H)
    return np.where(follows[..., None, None], first[..., None, :, :, :], then[..., None, :, :, :])


def step_mix(
    known: TabularKnowledge, baseline: ArrayLike, floor: ArrayLike, bonus: ExplorationBonus,
    optimistic: Array | None = None,
) -> Mixture:  # fmt: skip
    """The most optimistic mixture, step by step, whose lower bound reaches the floor.

    The optimistic policy where its bound L_0 reaches it. The baseline, where not even its own bound L_H does. Otherwise
    pi^j of `candidates` with the least j so that L_j, ..., L_H all reach it, and in step j - 1 the mixture
    (1 - rho) baseline + rho optimistic with the largest rho in multiples of 1 / 4096 that a direct evaluation allows.
    With probability 1 - delta no episode has a value below the floor, if the baseline hasn't.

    Args:
        baseline: (..., H, S, A).
        floor: gamma, (...) or one number; 0 allows everything.
        optimistic: (..., H, S, A), what is mixed in; by default the greedy policy of the upper bounds. The floor is
            kept whatever it is.

    Raises:
        ValueError: for another shape, rows that are not distributions, or a floor that no episode can earn.

    Reference: arXiv 2306.06265, Alg. 1 (StepMix).
    """
    base, floors = _given(known, baseline, floor)
    optimistic = known.optimistic(bonus)[0] if optimistic is None else _policy(known, optimistic)
    mixed = candidates(base, optimistic)
    lower = known.lower(mixed, bonus)  # (..., H + 1)
    safe = lower >= floors[..., None]
    steps = base.shape[-3]
    after_all = np.flip(np.logical_and.accumulate(np.flip(safe, -1), -1), -1)  # i is safe, and all after it are
    start = np.where(safe[..., 0], 0, np.where(safe[..., -1], after_all.argmax(-1), steps))
    policy = np.take_along_axis(mixed, start[..., None, None, None, None], -4)[..., 0, :, :, :]
    low = np.take_along_axis(lower, start[..., None], -1)[..., 0]
    rho = np.where(safe[..., 0], 1.0, 0.0)
    between = ~safe[..., 0] & safe[..., -1]
    if between.any():
        step = start - 1  # of the others, where it is outside of the steps or makes no difference, nothing is used
        share, bound = _largest_share(known, bonus, policy, optimistic, step, floors, low)
        found = _mixed(policy, optimistic, step, share[..., None])[..., 0, :, :, :]
        policy = np.where(between[..., None, None, None], found, policy)
        rho, low = np.where(between, share, rho), np.where(between, bound, low)
    return Mixture(policy, optimistic, np.ones_like(low), low, start, rho, safe[..., 0] | safe[..., -1])


def eps_mix(
    known: TabularKnowledge, baseline: ArrayLike, floor: ArrayLike, bonus: ExplorationBonus,
    optimistic: Array | None = None,
) -> Mixture:  # fmt: skip
    """The optimistic policy with probability rho, otherwise the baseline: one coin an episode.

    rho = (L_baseline - floor) / (L_baseline - L_optimistic), 1 where L_optimistic reaches the floor and 0 where
    L_baseline doesn't. The expectation over the coin keeps the floor; an episode that plays the optimistic policy alone
    may not.

    Args and raises: see `step_mix`.

    Reference: arXiv 2306.06265 (EpsMix).
    """
    base, floors = _given(known, baseline, floor)
    optimistic = known.optimistic(bonus)[0] if optimistic is None else _policy(known, optimistic)
    of_base, of_optimistic = np.moveaxis(known.lower(np.stack([base, optimistic], -4), bonus), -1, 0)
    certain, safe = of_optimistic >= floors, of_base >= floors
    room = np.where(safe & ~certain, of_base - of_optimistic, 1.0)
    coin = np.where(certain, 1.0, np.where(safe, (of_base - floors) / room, 0.0))
    low = coin * of_optimistic + (1 - coin) * of_base
    start = np.where(coin > 0, 0, base.shape[-3])
    return Mixture(optimistic, optimistic, coin, low, start, coin, certain | safe)


def offline_baseline(known: TabularKnowledge, floor: float, bonus: ExplorationBonus) -> tuple[Array, float]:
    """A baseline from offline data, pessimistic value iteration, with its lower bound as certificate.

    Its counts are where exploration should start. The rows of the data must be independent episodes.

    Returns:
        The policy (H, S, A) and its lower bound.

    Raises:
        NotCertified: where that is below the floor, naming both and how much is missing.
        ValueError: for data of several trials, or a floor that no episode can earn.
    """
    if known.means.ndim != 3:
        raise ValueError(f"counts have shape {known.counts.shape}, needed (H, S, A, S): data of one process")
    policy, _ = known.pessimistic(bonus)
    _given(known, policy, floor)
    low = float(known.lower(policy[None], bonus)[0])
    if low >= floor:
        return policy, low
    mean = float(known.plain(policy[None])[0])
    unseen = int((known.visits == 0).sum())
    remedy = (
        f"collect about {math.ceil(((mean - low) / (mean - floor)) ** 2)} times as many episodes"
        if mean > floor
        else "cover more: the data themselves, with no bonus, show no policy that reaches it"
    )
    raise NotCertified(
        f"the data certify {low:.4g} (with no bonus {mean:.4g}; {known.visits.sum():.0f} steps, {unseen} of "
        f"{known.visits.size} (step, state, action) never seen), below floor = {floor:.4g}: {remedy}, lower the floor, "
        "or give a baseline that is known to be safe"
    )


def _given(known: TabularKnowledge, baseline: ArrayLike, floor: ArrayLike) -> tuple[Array, Array]:
    """The baseline and one floor for each trial."""
    floors = np.asarray(floor, dtype=np.float64)
    if not ((floors >= 0) & (floors <= known.ceilings[0])).all():
        raise ValueError(
            f"floor = {floor} must be in [0, {known.ceilings[0]:g}], what an episode can earn: give a share of what "
            "the baseline earns"
        )
    return _policy(known, baseline), np.broadcast_to(floors, known.means.shape[:-3])


def _policy(known: TabularKnowledge, policy: ArrayLike) -> Array:
    """One (..., H, S, A), checked."""
    return checked(np.asarray(policy, dtype=np.float64)[..., None, :, :, :], known.means.shape)[..., 0, :, :, :]


def _largest_share(
    known: TabularKnowledge, bonus: ExplorationBonus, policy: Array, optimistic: Array, step: Indices, floors: Array,
    lower: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """rho (...) in `step` and its bound, by direct evaluation: with a clipped bonus the bound isn't linear in rho."""
    share, parts = np.zeros_like(lower), np.arange(1, PARTS)
    for turn in range(1, ROUNDS + 1):
        tried = share[..., None] + parts / PARTS**turn
        bounds = known.lower(_mixed(policy, optimistic, step, tried), bonus)
        last = np.where(bounds >= floors[..., None], parts, 0).max(-1)
        share = share + last / PARTS**turn
        at = np.take_along_axis(bounds, np.maximum(last - 1, 0)[..., None], -1)[..., 0]
        lower = np.where(last > 0, at, lower)
    return share, lower


def _mixed(policy: Array, optimistic: Array, step: Indices, shares: Array) -> Array:
    """Policies (..., R, H, S, A) that mix a share (..., R) of the optimistic one into one step (...)."""
    here = np.arange(policy.shape[-3]) == step[..., None]
    weight = (shares[..., None] * here[..., None, :])[..., None, None]
    return (1 - weight) * policy[..., None, :, :, :] + weight * optimistic[..., None, :, :, :]
