"""Decision processes with finitely many states, actions and steps: what they are, and exact values on them.

Leading axes `...` are trials: independent processes, or runs on one of them, handled at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]
TOLERANCE = 1e-9  # of probabilities that shall sum to one


@dataclass(frozen=True, init=False, eq=False)
class TabularMDP:
    """An episodic process: s_0 ~ initial, then at each step h an action a, a reward r_h(s, a) and s' ~ P_h(. | s, a).

    Args:
        transitions: P, (..., H, S, A, S), each row a distribution.
        rewards: r, (..., H, S, A), in [0, 1].
        initial: (..., S), a distribution; by default state 0.

    Raises:
        ValueError: for other shapes, rewards outside of [0, 1], or rows that are not distributions.
    """

    transitions: Array
    rewards: Array
    initial: Array

    def __init__(self, transitions: ArrayLike, rewards: ArrayLike, initial: ArrayLike | None = None) -> None:
        p, r = np.asarray(transitions, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
        if p.ndim < 4 or p.shape[-3] != p.shape[-1] or 0 in p.shape:
            raise ValueError(f"transitions have shape {p.shape}, needed (..., H, S, A, S) with none of them 0")
        if r.shape != p.shape[:-1]:
            raise ValueError(f"rewards have shape {r.shape}, needed {p.shape[:-1]}: that of transitions, less the last")
        require_within("rewards", r, 0.0, 1.0)
        require_distributions("transitions", p)
        object.__setattr__(self, "transitions", p)
        object.__setattr__(self, "rewards", r)
        object.__setattr__(self, "initial", initial_of(initial, p.shape[:-4], p.shape[-1]))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """H, S, A."""
        return self.rewards.shape[-3], self.rewards.shape[-2], self.rewards.shape[-1]

    def trials(self, count: int) -> TabularMDP:
        """With one leading axis of so many trials; a process without any is repeated."""
        shape = (count, *self.rewards.shape[-3:])
        return TabularMDP(
            np.broadcast_to(self.transitions, (*shape, shape[-2])), np.broadcast_to(self.rewards, shape),
            np.broadcast_to(self.initial, (count, shape[-2])),
        )  # fmt: skip

    def values(self, policies: ArrayLike) -> Array:
        """What each of C policies (..., C, H, S, A) earns in an episode in expectation, (..., C), in [0, H]."""
        return evaluate(self.transitions, self.rewards, self.initial, checked(policies, self.rewards.shape))

    def value(self, policy: ArrayLike) -> Array:
        """What a policy (..., H, S, A) earns in an episode in expectation, (...)."""
        return self.values(np.asarray(policy)[..., None, :, :, :])[..., 0]

    def optimal(self) -> tuple[Array, Array]:
        """The best policy and its action values Q*, both (..., H, S, A)."""
        return greedy(self.transitions, self.rewards)


Correct = Callable[[int, Array, Array], Array]  # step, r + P V (..., S, A, C), V of the next step (..., S, C) -> Q


def _plain(_: int, q: Array, __: Array) -> Array:
    return q


def backup(transitions: Array, value: Array) -> Array:
    """P V of one step: (..., S, A, S) and (..., S, C) -> (..., S, A, C)."""
    *trials, states, actions, _ = transitions.shape
    out = transitions.reshape(*trials, states * actions, states) @ value  # all policies in one product
    return out.reshape((*transitions.shape[:-1], out.shape[-1]))


def evaluate(
    transitions: Array, rewards: Array, initial: Array, policies: Array, correct: Correct = _plain
) -> Array:
    """Values (..., C) of policies (..., C, H, S, A): V_h = sum_a pi_h(a|s) correct(r_h + P_h V_{h+1})."""
    steps, states = rewards.shape[-3:-1]
    shares = np.moveaxis(policies, -4, -1)  # (..., H, S, A, C)
    value = np.zeros((*rewards.shape[:-3], states, policies.shape[-4]))
    for h in reversed(range(steps)):
        q = correct(h, rewards[..., h, :, :, None] + backup(transitions[..., h, :, :, :], value), value)
        value = (shares[..., h, :, :, :] * q).sum(-2)
    return (initial[..., None] * value).sum(-2)


def greedy(transitions: Array, rewards: Array, correct: Correct = _plain) -> tuple[Array, Array]:
    """The policy that is best for Q_h = correct(r_h + P_h max_a Q_{h+1}), of equal actions the first, and Q."""
    q = np.empty(rewards.shape)
    value = np.zeros((*rewards.shape[:-3], rewards.shape[-2], 1))
    for h in reversed(range(rewards.shape[-3])):
        plain = rewards[..., h, :, :, None] + backup(transitions[..., h, :, :, :], value)
        q[..., h, :, :] = correct(h, plain, value)[..., 0]
        value = q[..., h, :, :].max(-1)[..., None]
    return one_hot(q.argmax(-1), rewards.shape[-1]), q


def one_hot(actions: ArrayLike, count: int) -> Array:
    """The policy that takes these actions (..., H, S) of `count`: (..., H, S, A)."""
    chosen = np.asarray(actions)
    if not np.issubdtype(chosen.dtype, np.integer) or chosen.size and not (0 <= chosen.min() <= chosen.max() < count):
        raise ValueError(f"actions must be integers in 0 to {count - 1}: they index the action axis")
    return np.eye(count)[chosen]


def softmax_policy(q: ArrayLike, temperature: float) -> Array:
    """pi(a | s) proportional to exp(Q(s, a) / temperature), of Q (..., H, S, A)."""
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0: near 0 the policy is greedy")
    scores = np.asarray(q, dtype=np.float64) / temperature
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def random_mdp(generator: np.random.Generator, steps: int, states: int, actions: int) -> TabularMDP:
    """Rewards uniform in [0, 1], transitions uniform on the simplex, episodes from state 0.

    Reference: arXiv 2306.06265, Sec. of experiments (there 3 steps, 5 states, 5 actions).
    """
    shape = (steps, states, actions)
    return TabularMDP(generator.dirichlet(np.ones(states), size=shape), generator.random(shape))


def checked(policies: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Policies (..., C, H, S, A) for rewards of this shape (..., H, S, A).

    Raises:
        ValueError: for another shape, or rows that are not distributions.
    """
    out = np.asarray(policies, dtype=np.float64)
    if out.ndim < 4 or (*out.shape[:-4], *out.shape[-3:]) != shape:
        raise ValueError(f"policies have shape {out.shape}, needed (..., C, H, S, A) for (..., H, S, A) = {shape}")
    require_distributions("policy", out)
    return out


def initial_of(initial: ArrayLike | None, trials: tuple[int, ...], states: int) -> Array:
    """Where episodes begin (..., S); state 0 where nothing is given."""
    out = np.eye(states)[0] if initial is None else np.asarray(initial, dtype=np.float64)
    if out.shape[-1:] != (states,):
        raise ValueError(f"initial has shape {out.shape}, needed (..., S) with S = {states}")
    require_distributions("initial", out)
    return np.broadcast_to(out, (*trials, states))


def require_within(name: str, values: Array, low: float, high: float) -> None:
    """Raises ValueError where a value is outside of [low, high] or not finite."""
    wrong = ~((values >= low) & (values <= high))  # NaN, too
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name}{list(at)} = {values[at]} is outside of [{low:g}, {high:g}]: scale what you measure")


def require_distributions(name: str, values: Array) -> None:
    """Raises ValueError where a row is negative, or doesn't sum to one."""
    sums = values.sum(-1)
    wrong = ~((values >= 0).all(-1) & (np.abs(sums - 1) <= TOLERANCE))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}{list(at)} sums to {sums[at]} with least entry {values[at].min()}, needed a distribution: divide "
            "each row of counts by its sum"
        )
