"""A safe tuner of acceleration schedules: tries cheaper settings in real runs and keeps a floor while it learns.

What a sampler does is made a small process: decision h of H along the trajectory, a bucket of how much has changed
since the last decision, and one of a few named settings. StepMix then says how far from a published static schedule the
next runs may go. Its guarantee holds for that process: it assumes that the next bucket and the quality of a decision
depend on its step, its bucket and its setting alone (Markov), which a trajectory fulfils approximately at best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .stepmix import Mixture, eps_mix, offline_baseline, step_mix
from .tabular import Array, Indices, TabularMDP, one_hot, require_within
from .tabular_bounds import ExplorationBonus, TabularKnowledge

Choose = Callable[[int, ArrayLike], Indices]  # decision h, changes (B,) -> settings (B,) as indices of the costs
Sampler = Callable[[Choose, int], ArrayLike]  # runs B trajectories, asking at every decision -> qualities (B, H)


@dataclass(frozen=True)
class ScheduleSpace:
    """What may be decided, and what it is worth.

    A decision earns (share q + (1 - share) (1 - cost)) / H with its quality q in [0, 1], a run their sum, in [0, 1].

    Args:
        costs: setting -> cost of a decision, as a share of the dearest one, in [0, 1].
        edges: S - 1 increasing bounds of the change that divide it into S buckets.
        decisions: H.
        share: of quality in the reward, in [0, 1].

    Raises:
        ValueError: for values outside of these, or fewer than two settings.
    """

    costs: Mapping[str, float]
    edges: tuple[float, ...]
    decisions: int
    share: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", MappingProxyType(dict(self.costs)))
        if len(self.costs) < 2:
            raise ValueError(f"costs = {dict(self.costs)}: give at least two settings, or there is nothing to tune")
        require_within("costs", np.array([*self.costs.values()], dtype=np.float64), 0.0, 1.0)
        if not np.isfinite(self.edges).all() or (np.diff(self.edges) <= 0).any():
            raise ValueError(f"edges = {list(self.edges)} must be finite and increase: they divide changes in buckets")
        if self.decisions < 1:
            raise ValueError(f"decisions = {self.decisions} must be at least 1")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share} must be in [0, 1]: quality's part of the reward")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self.costs), self.edges, self.decisions, self.share)

    def __hash__(self) -> int:
        return hash((tuple(self.costs.items()), self.edges, self.decisions, self.share))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """H, S, A."""
        return self.decisions, len(self.edges) + 1, len(self.costs)

    def buckets(self, step: int, changes: ArrayLike) -> Indices:
        """Of changes (B,), in 0 to S - 1; before the first decision nothing has changed: 0."""
        values = np.asarray(changes, dtype=np.float64)
        if np.isnan(values).any():
            raise ValueError(f"changes of decision {step} hold NaN: the sampler has diverged")
        return np.zeros(values.shape, np.int64) if step == 0 else np.searchsorted(self.edges, values, side="right")

    def rewards(self, actions: Indices, qualities: ArrayLike) -> Array:
        """(B, H) of settings (B, H) and qualities (B, H)."""
        good = np.asarray(qualities, dtype=np.float64)
        if good.shape != actions.shape:
            raise ValueError(f"qualities have shape {good.shape}, needed (B, H) = {actions.shape}")
        require_within("qualities", good, 0.0, 1.0)
        saved = 1 - np.array([*self.costs.values()])[actions]
        return (self.share * good + (1 - self.share) * saved) / self.decisions

    def schedule(self, names: Sequence[str]) -> Array:
        """The policy of a static schedule: one setting for each decision, whatever has changed."""
        if len(names) != self.decisions or not set(names) <= set(self.costs):
            raise ValueError(f"schedule = {list(names)}: give {self.decisions} names of {', '.join(self.costs)}")
        chosen = [[list(self.costs).index(name)] * self.sizes[1] for name in names]
        return one_hot(np.array(chosen), len(self.costs))


@dataclass(frozen=True)
class SafeSchedule:
    """The best schedule that is certified.

    Args:
        settings: H x S names: what to do at a decision when the change lies in a bucket.
        lower: lower bound of what a run earns with it, at the level of the bonus; below `floor` nothing is certified,
            and these are the baseline's settings.
        floor: what was asked for.
        earned: what it earns by the data themselves, with no bonus.
        runs: trajectories that were seen.
    """

    settings: tuple[tuple[str, ...], ...]
    lower: float
    floor: float
    earned: float
    runs: int


@dataclass(frozen=True)
class Played:
    """What a batch of runs has played.

    Args:
        runs: their number.
        mixture: see `Mixture`.
        earned: mean reward of a run.
        cost: mean cost of a decision.
        shares: (H, A), how often each setting was taken.
    """

    runs: int
    mixture: Mixture
    earned: float
    cost: float
    shares: Array


class ScheduleTuner:
    """Learns from logged runs (`record`) and its own (`play`) which settings may be cheaper, and says so (`schedule`).

    Whatever has been played, with probability 1 - delta no policy was played whose expected reward is below the floor,
    if the process is Markov, the bonus is proved and the baseline keeps the floor.

    Args:
        space: decisions, buckets, settings.
        baseline: a published static schedule, H names, or a policy (H, S, A); None makes one of the logged runs, which
            must certify it.
        floor: reward of a run in [0, 1] that is kept in expectation, such as 0.95 of the baseline's.
        bonus: of the bounds.
        method: `stepmix` or `epsmix`.
        logged: knowledge from before, of the same space.

    Raises:
        NotCertified: without a baseline, where the logged runs don't certify one.
        ValueError: for values outside of these.

    Reference: arXiv 2306.06265 (the algorithms); the process is ours.
    """

    def __init__(
        self, space: ScheduleSpace, baseline: Sequence[str] | Array | None, floor: float,
        bonus: ExplorationBonus | None = None, method: Literal["stepmix", "epsmix"] = "stepmix",
        logged: TabularKnowledge | None = None,
    ) -> None:  # fmt: skip
        if method not in ("stepmix", "epsmix"):
            raise ValueError(f"method = {method!r} is unknown: give 'stepmix' or 'epsmix'")
        if logged is not None and (logged.means.shape != space.sizes or logged.sums is None):
            raise ValueError(f"logged runs of {logged.means.shape} don't fit {space.sizes}, or lack observed rewards")
        self.space, self.floor, self.bonus = space, floor, bonus or ExplorationBonus()
        self._mix = step_mix if method == "stepmix" else eps_mix
        self.known = logged or _nothing(space)
        if baseline is None:
            self.baseline, _ = offline_baseline(self.known, floor, self.bonus)
        else:
            named = isinstance(baseline, Sequence)
            self.baseline = space.schedule(baseline) if named else np.asarray(baseline, dtype=np.float64)
        self.plan()  # says what is wrong with them now, not after the first runs

    def plan(self) -> Mixture:
        """What the next runs may play."""
        return self._mix(self.known, self.baseline, self.floor, self.bonus)

    def record(self, changes: ArrayLike, actions: ArrayLike, qualities: ArrayLike) -> None:
        """Learns from runs that anybody made: changes, settings (indices) and qualities, all (B, H)."""
        moved, chosen = np.asarray(changes, dtype=np.float64), np.asarray(actions)
        steps, states, count = self.space.sizes
        if moved.shape != chosen.shape or chosen.ndim != 2 or chosen.shape[1] != steps:
            raise ValueError(f"changes {moved.shape} and actions {chosen.shape} must be (B, H) with H = {steps}")
        one_hot(chosen, count)  # says what is no setting
        rewards = self.space.rewards(chosen, qualities)
        where = np.stack([self.space.buckets(h, moved[:, h]) for h in range(steps)], 1)
        following = np.concatenate([where[:, 1:], np.zeros_like(where[:, :1])], 1)  # nothing follows on the last one
        counts, sums, squares = (np.array(x) for x in (self.known.counts, self.known.sums, self.known.squares))
        at = (np.arange(steps), where, chosen)
        np.add.at(counts, (*at, following), 1)
        np.add.at(sums, (*at, following), rewards)
        np.add.at(squares, at, rewards**2)
        self.known = _nothing(self.space, counts, sums, squares)

    def play(self, sampler: Sampler, runs: int, generator: np.random.Generator) -> Played:
        """Plays a batch of runs by one plan and learns from them.

        Raises:
            ValueError: for no runs, a sampler that doesn't ask for every decision in turn, or qualities that are none.
        """
        if runs < 1:
            raise ValueError(f"runs = {runs} must be at least 1")
        mixture = self.plan()
        whole = generator.random(runs) < mixture.coin
        policies = np.stack([self.baseline, mixture.policy])
        changes, actions = [], []

        def choose(step: int, change: ArrayLike) -> Indices:
            if step != len(actions) or np.shape(change) != (runs,):
                raise ValueError(
                    f"decision {step} with changes {np.shape(change)}: needed is {len(actions)} with ({runs},), as the "
                    "sampler must ask for every decision in turn and all of its runs"
                )
            shares = policies[whole.astype(np.int64), step, self.space.buckets(step, change)].cumsum(-1)
            chosen = (generator.random((runs, 1)) * shares[:, -1:] >= shares).sum(-1)
            changes.append(np.asarray(change, dtype=np.float64))
            actions.append(chosen)
            return chosen

        qualities = np.asarray(sampler(choose, runs), dtype=np.float64)
        if len(actions) != self.space.decisions:
            raise ValueError(f"the sampler asked for {len(actions)} decisions, needed {self.space.decisions}")
        taken = np.stack(actions, 1)
        self.record(np.stack(changes, 1), taken, qualities)
        shares = one_hot(taken, len(self.space.costs)).mean(0)
        earned = float(self.space.rewards(taken, qualities).sum(1).mean())
        return Played(runs, mixture, earned, float((shares @ [*self.space.costs.values()]).mean()), shares)

    def schedule(self) -> SafeSchedule:
        """The best one by its lower bound where that reaches the floor, otherwise the baseline's likeliest settings.

        In a bucket where nothing is known it has the first setting.
        """
        best, _ = self.known.pessimistic(self.bonus)
        both = np.stack([best, self.baseline])
        low = self.known.lower(both, self.bonus)
        chosen = 0 if low[0] >= self.floor else 1
        names = list(self.space.costs)
        settings = tuple(tuple(names[i] for i in row) for row in both[chosen].argmax(-1))
        runs = int(self.known.counts[0].sum())
        return SafeSchedule(settings, float(low[chosen]), self.floor, float(self.known.plain(both)[chosen]), runs)

    def process(self) -> TabularMDP:
        """The process as it was measured; where nothing was ever seen it earns nothing and stays in its bucket.

        On it `play_episodes` can be judged exactly. What it says of real runs is as good as the Markov assumption.
        """
        steps, states, actions = self.space.sizes
        staying = np.broadcast_to(np.eye(states)[None, :, None, :], self.known.counts.shape)
        seen = (self.known.visits > 0)[..., None]
        return TabularMDP(np.where(seen, self.known.transitions, staying), self.known.means)


def _nothing(
    space: ScheduleSpace, counts: Array | None = None, sums: Array | None = None,
    squares: Array | None = None,
) -> TabularKnowledge:  # fmt: skip
    steps, states, actions = space.sizes
    if counts is None or sums is None or squares is None:
        counts, sums = np.zeros((steps, states, actions, states)), np.zeros((steps, states, actions, states))
        squares = np.zeros((steps, states, actions))
    largest = np.full(steps, 1 / steps)
    return TabularKnowledge(counts, sums=sums, squares=squares, largest=largest)
