"""Episodes of a known tabular process: what StepMix, EpsMix and their rivals play there, judged by exact values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from .stepmix import Mixture, eps_mix, step_mix
from .tabular import Array, Flags, Indices, TabularMDP, checked
from .tabular_bounds import ExplorationBonus, TabularKnowledge

Method = Literal["stepmix", "epsmix", "optimism", "cumulative", "baseline"]
EXACT = 1e-12  # rounding of a value
RECORDED = ("values", "lower", "start", "rho")
LONGEST = 512  # episodes that are walked at once


@dataclass(frozen=True, eq=False)
class History:
    """What T trials have played in K episodes; all but `visits` have shape (T, K).

    Args:
        values: exact expected return of what was played, the coin of EpsMix left open.
        lower: its lower bound when it was planned.
        start, rho: see `Mixture`.
        optimistic: whether the optimistic policy alone was played, by a coin or throughout.
        plans: (T,), how often it was planned.
        floor: (T,).
        counts: (T, H, S, A, S), all transitions, those of the start included.
    """

    values: Array
    lower: Array
    start: Indices
    rho: Array
    optimistic: Flags
    plans: Indices
    floor: Array
    counts: Array

    @property
    def violations(self) -> Flags:
        """Whether the value of an episode's policy is below the floor, beyond rounding."""
        return self.values < self.floor[:, None] - EXACT


def play_episodes(
    mdp: TabularMDP,
    baseline: ArrayLike,
    floor: ArrayLike,
    method: Method,
    episodes: int,
    bonus: ExplorationBonus,
    seeds: Sequence[int] = (0,),
    offline: ArrayLike | None = None,
    growth: float = 0.05,
) -> History:
    """Plays episodes and learns the transitions from all of them; rewards are known.

    `optimism` is UCB-VI, `baseline` never explores, and `cumulative` keeps the floor on the average of all episodes
    only: it plays the optimistic policy whenever what certified episodes have earned above the floor pays for it.

    Args:
        mdp: one process, or one for each trial.
        baseline: (H, S, A) or (T, H, S, A).
        floor: one number, or (T,).
        episodes: K, of each trial.
        seeds: of T trials, whose results don't depend on each other.
        offline: (H, S, A, S) or (T, H, S, A, S), transitions that are known before the first episode.
        growth: a new policy is made when the visits of some step, state and action have grown by this share.

    Raises:
        ValueError: for values outside of these, or a baseline whose own value is below the floor.

    References: arXiv 2306.06265; `cumulative` after arXiv 2002.03218.
    """
    trials, (steps, states, _) = len(seeds), mdp.sizes
    _require(method, episodes, growth, trials)
    worlds = mdp.trials(trials)
    base = np.broadcast_to(np.asarray(baseline, dtype=np.float64), worlds.rewards.shape)
    checked(base[:, None], worlds.rewards.shape)
    floors = np.broadcast_to(np.asarray(floor, dtype=np.float64), (trials,))
    earned = worlds.value(base)
    if (worst := int((earned - floors).argmin())) >= 0 and earned[worst] < floors[worst] - EXACT:
        raise ValueError(
            f"floor = {floors[worst]:.6g} is above the baseline's own value {earned[worst]:.6g}: no method could keep "
            "it; give a share below 1 of that value"
        )
    shape = (*worlds.rewards.shape, states)
    counts = np.zeros(shape) if offline is None else np.broadcast_to(np.asarray(offline, np.float64), shape).copy()
    run = _Run(worlds, base, floors, method, bonus, growth, counts)
    out = {name: np.zeros((trials, episodes)) for name in RECORDED}
    optimistic = np.zeros((trials, episodes), np.bool_)
    # Drawn by trial and episode: neither the other trials nor how many are walked at once change anything.
    draws = np.stack([np.random.default_rng(seed).random((episodes, 2 * steps + 2)) for seed in seeds])
    done, block = np.zeros(trials, np.int64), 16
    while (active := np.flatnonzero(done < episodes)).size:
        run.plan(active[run.due[active]])
        at = np.minimum(done[active, None] + np.arange(block), episodes - 1)
        chosen, taken = run.walk(active, draws[active[:, None], at], episodes - done[active])
        row, column = np.nonzero(np.arange(block) < taken[:, None])
        trial, episode = active[row], done[active[row]] + column
        which = chosen[row, column].astype(np.int64)
        for name, kept in out.items():
            kept[trial, episode] = run.now[name][trial, which]
        optimistic[trial, episode] = chosen[row, column] & run.whole[trial]
        done[active] += taken
        block = int(min(LONGEST, 2 * taken.max() + 1))
    return History(
        values=out["values"], lower=out["lower"], start=out["start"].astype(np.int64), rho=out["rho"],
        optimistic=optimistic, plans=run.plans, floor=floors, counts=run.counts,
    )  # fmt: skip


def _require(method: str, episodes: int, growth: float, trials: int) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method = {method!r} is unknown: give one of {', '.join(get_args(Method))}")
    if episodes < 1 or trials < 1:
        raise ValueError(f"episodes = {episodes} and {trials} seeds: give at least one of each")
    if not 0 <= growth < 1:
        raise ValueError(f"growth = {growth} must be in [0, 1): 0.05 is usual, 0 plans before every episode")


class _Run:
    """What the trials know and play. Each is planned at its own times, so they are at different episodes."""

    def __init__(
        self, worlds: TabularMDP, base: Array, floors: Array, method: Method, bonus: ExplorationBonus, growth: float,
        counts: Array,
    ) -> None:  # fmt: skip
        trials = len(base)
        self._worlds, self._base, self._floors = worlds, base, floors
        self._method, self._bonus, self._growth, self.counts = method, bonus, growth, counts
        self._transitions, self._initial = _cumulated(worlds.transitions), _cumulated(worlds.initial)
        self.due, self.plans = np.ones(trials, np.bool_), np.zeros(trials, np.int64)
        self._left = np.zeros_like(base)  # visits until a new plan is due
        self._policies = np.stack([_cumulated(base)] * 2, 1)  # the baseline, and what is planned
        self._coin, self.whole = np.ones(trials), np.zeros(trials, np.bool_)
        self._budget = np.zeros(trials)  # of `cumulative`: what was certified above the floor so far
        self.now = {name: np.zeros((trials, 2)) for name in RECORDED}  # if the baseline is played, or the plan

    def plan(self, who: Indices) -> None:
        """What these trials play from now on."""
        if not who.size:
            return
        world = TabularMDP(self._worlds.transitions[who], self._worlds.rewards[who], self._worlds.initial[who])
        known = TabularKnowledge(self.counts[who], world.rewards, initial=world.initial)
        made = self._made(known, who)
        values = world.values(np.stack([self._base[who], made.policy], 1))
        steps = self._base.shape[1]
        if self._method == "cumulative":
            of_base = known.lower(self._base[who][:, None], self._bonus)[:, 0]
            told = (values, np.stack([of_base, made.lower], 1), [steps, 0], [0.0, 1.0])
        else:
            mean = (1 - made.coin) * values[:, 0] + made.coin * values[:, 1]
            told = (mean[:, None], made.lower[:, None], made.start[:, None], made.rho[:, None])
        for name, value in zip(RECORDED, told, strict=True):
            self.now[name][who] = value
        self._policies[who, 1], self._coin[who], self.whole[who] = _cumulated(made.policy), made.coin, made.start == 0
        self._left[who] = np.maximum(np.ceil(self._growth * known.visits), 1)
        self.due[who] = False
        self.plans[who] += 1

    def _made(self, known: TabularKnowledge, who: Indices) -> Mixture:
        base, bonus = self._base[who], self._bonus
        if self._method == "stepmix":
            return step_mix(known, base, self._floors[who], bonus)
        if self._method == "epsmix":
            return eps_mix(known, base, self._floors[who], bonus)
        optimistic = known.optimistic(bonus)[0]
        only = self._method == "baseline"
        policy, ones = base if only else optimistic, np.ones(len(who))
        low = known.lower(policy[:, None], bonus)[:, 0]
        start = np.full(len(who), base.shape[1] if only else 0)
        return Mixture(policy, optimistic, ones, low, start, 0 * ones if only else ones, low >= self._floors[who])

    def walk(self, who: Indices, draws: Array, remaining: Indices) -> tuple[Flags, Indices]:
        """Plays a block of episodes by the draws (T, B, 2 H + 2); of each trial up to where a new plan is due.

        Returns:
            Whether the plan (or else the baseline) was played, (T, B), and how many episodes count, (T,).
        """
        chosen = draws[..., -1] < self._coin[who, None]
        budgets = np.zeros(chosen.shape)
        if self._method == "cumulative":
            chosen, budgets = self._paid(who, chosen.shape[1])
        cells, following = self._episodes(who, chosen, draws)
        taken = np.minimum(_until_due(cells, self._left[who]), np.minimum(remaining, chosen.shape[1]))
        row, column = np.nonzero(np.arange(chosen.shape[1]) < taken[:, None])
        shape = self._left.shape[1:]
        step, state, action = np.unravel_index(cells[row, column], shape)
        np.add.at(self.counts, (who[row, None], step, state, action, following[row, column]), 1)
        np.subtract.at(self._left, (who[row, None], step, state, action), 1)
        self.due[who] = self._left[who].reshape(len(who), -1).min(-1) <= 0
        self._budget[who] = budgets[np.arange(len(who)), taken - 1]
        return chosen, taken

    def _paid(self, who: Indices, count: int) -> tuple[Flags, Array]:
        """Whether the optimistic policy can be afforded in each of the next episodes, and the budget after each."""
        floors, budget = self._floors[who], self._budget[who]
        of_base, of_plan = self.now["lower"][who, 0] - floors, self.now["lower"][who, 1] - floors
        gain = np.maximum(of_base, 0)  # the baseline keeps the floor by assumption
        chosen, budgets = np.empty((len(who), count), np.bool_), np.empty((len(who), count))
        for i in range(count):
            chosen[:, i] = budget + of_plan >= 0
            budget = budgets[:, i] = budget + np.where(chosen[:, i], of_plan, gain)
        return chosen, budgets

    def _episodes(self, who: Indices, chosen: Flags, draws: Array) -> tuple[Indices, Indices]:
        """Cells (step, state, action) as flat indices and the states that follow, both (T, B, H)."""
        trial, which = who[:, None], chosen.astype(np.int64)
        steps, states, actions = self._left.shape[1:]
        state = _drawn(self._initial[trial], draws[..., -2])
        cells, following = [], []
        for h in range(steps):
            action = _drawn(self._policies[trial, which, h, state], draws[..., 2 * h])
            cells.append((h * states + state) * actions + action)
            state = _drawn(self._transitions[trial, h, state, action], draws[..., 2 * h + 1])
            following.append(state)
        return np.stack(cells, -1), np.stack(following, -1)


def _cumulated(shares: Array) -> Array:
    """Sums along the last axis that end at exactly 1, so that what has no share is never drawn."""
    sums = shares.cumsum(-1)
    return sums / sums[..., -1:]


def _drawn(cumulated: Array, draws: Array) -> Indices:
    """Indices by the inverse of the distribution: (..., N) and (...) in [0, 1) -> (...)."""
    return (draws[..., None] >= cumulated).sum(-1)


def _until_due(cells: Indices, left: Array) -> Indices:
    """Episodes (T,) of the block up to and with the first one in which some cell uses up its visits."""
    trials, block, steps = cells.shape
    flat = left.reshape(trials, -1)
    keys = (cells + flat.shape[1] * np.arange(trials)[:, None, None]).ravel()
    order = keys.argsort(kind="stable")  # of equal cells, episode by episode
    ordered = keys[order]
    first = np.searchsorted(ordered, ordered)
    visit = np.empty(len(keys), np.int64)
    visit[order] = np.arange(len(keys)) - first + 1
    last = (visit >= flat.ravel()[keys]).reshape(trials, block, steps).any(-1)
    return np.where(last.any(-1), last.argmax(-1) + 1, block)
