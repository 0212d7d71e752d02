"""Tabular processes: values against enumeration, bonuses by hand, bounds on a thousand random processes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from epd.rl.tabular import Array, TabularMDP, one_hot, random_mdp, softmax_policy
from epd.rl.tabular_bounds import ExplorationBonus, TabularKnowledge

KINDS = [
    ExplorationBonus(),
    ExplorationBonus("bernstein"),
    ExplorationBonus("both"),
    ExplorationBonus("both", union="simple"),
]


def enumerated(mdp: TabularMDP, policy: Array) -> float:
    """The value as a sum over all trajectories."""
    steps, states, actions = mdp.sizes
    total = 0.0
    for path in itertools.product(itertools.product(range(states), range(actions)), repeat=steps):
        chance, earned = mdp.initial[path[0][0]], 0.0
        for h, (s, a) in enumerate(path):
            chance *= policy[h, s, a] * (mdp.transitions[h, s, a, path[h + 1][0]] if h + 1 < steps else 1)
            earned += mdp.rewards[h, s, a]
        total += chance * earned
    return total


def small(seed: int) -> tuple[TabularMDP, Array]:
    generator = np.random.default_rng(seed)
    mdp = random_mdp(generator, 3, 2, 2)
    mdp = TabularMDP(mdp.transitions, mdp.rewards, generator.dirichlet([1, 1]))
    return mdp, generator.dirichlet([1, 1], size=(3, 2))


def test_values_are_sums_over_trajectories() -> None:
    for seed in range(5):
        mdp, policy = small(seed)
        assert mdp.value(policy) == pytest.approx(enumerated(mdp, policy), abs=1e-13)


def test_the_best_policy_is_the_best_of_all() -> None:
    mdp, _ = small(7)
    every = [one_hot(np.reshape(actions, (3, 2)), 2) for actions in itertools.product(range(2), repeat=6)]
    values = mdp.values(np.stack(every))
    best, q = mdp.optimal()
    assert mdp.value(best) == pytest.approx(values.max(), abs=1e-13)
    assert (mdp.initial * q[0].max(-1)).sum() == pytest.approx(values.max(), abs=1e-13)


def test_trials_are_handled_alone() -> None:
    alone = [small(seed) for seed in range(4)]
    together = TabularMDP(*(np.stack([getattr(m, n) for m, _ in alone]) for n in ("transitions", "rewards", "initial")))
    policies = np.stack([policy for _, policy in alone])
    assert together.value(policies).tolist() == pytest.approx([float(m.value(p)) for m, p in alone], abs=1e-14)
    assert (together.optimal()[0] == np.stack([m.optimal()[0] for m, _ in alone])).all()
    counts = np.random.default_rng(0).integers(0, 9, size=(4, 3, 2, 2, 2)).astype(float)
    for bonus in KINDS:
        whole = TabularKnowledge(counts, together.rewards, initial=together.initial)
        single = [TabularKnowledge(c, m.rewards, initial=m.initial) for c, (m, _) in zip(counts, alone, strict=True)]
        low = [float(k.lower(p[None], bonus)[0]) for k, (_, p) in zip(single, alone, strict=True)]
        assert whole.lower(policies[:, None], bonus)[:, 0].tolist() == pytest.approx(low, abs=1e-14)


def two_steps(rewards: bool) -> TabularKnowledge:
    """State 0, then state 0 three times and state 1 once; the second step pays 1 in state 1. One action."""
    counts = np.zeros((2, 2, 1, 2))
    counts[0, 0, 0], counts[1, :, 0, 0] = (60, 20), 400
    paid = np.zeros((2, 2, 1))
    paid[0, 0, 0], paid[1, 1, 0] = 0.5, 1.0
    if rewards:
        return TabularKnowledge(counts, paid)
    return TabularKnowledge(counts, sums=counts * paid[..., None], squares=counts.sum(-1) * paid**2)


def test_bonuses_by_hand() -> None:
    policy = np.ones((1, 2, 2, 1))
    level = math.log(4 * 2 * 1 * 2 * 82**2 / 0.1) + 2 * math.log(2)
    hoeffding = math.sqrt(level / 160)
    known = two_steps(True)  # the last step is known: 0 or 1, with a mean of 1 / 4 and a variance of 3 / 16
    assert known.lower(policy, ExplorationBonus())[0] == pytest.approx(0.75 - hoeffding, abs=1e-13)
    assert known.upper(policy, ExplorationBonus())[0] == pytest.approx(0.75 + hoeffding, abs=1e-13)
    assert known.plain(policy)[0] == pytest.approx(0.75, abs=1e-14)
    simple = math.sqrt((level - 2 * math.log(2)) / 160)
    scaled = ExplorationBonus(union="simple", unproved_scale=0.5)
    assert known.lower(policy, scaled)[0] == pytest.approx(0.75 - 0.5 * simple, abs=1e-13)
    thin = math.sqrt(2 * 3 / 16 * level / 79) + 7 * level / (3 * 79)
    assert known.upper(policy, ExplorationBonus("bernstein", unproved_scale=0.5))[0] == pytest.approx(
        0.75 + 0.5 * thin, abs=1e-13
    )
    halved = math.sqrt((level + math.log(2)) / 160)
    assert known.lower(policy, ExplorationBonus("both"))[0] == pytest.approx(0.75 - halved, abs=1e-13)


def test_observed_rewards_have_bonuses_of_their_own() -> None:
    policy, known = np.ones((1, 2, 2, 1)), two_steps(False)
    level = [math.log(4 * 2 * 1 * 2 * (n + 2) ** 2 / 0.1) + 2 * math.log(2) for n in (80, 400)]
    last = math.sqrt(level[1] / 800)  # of a reach of 1: the second step, in either state
    first = 2 * math.sqrt(level[0] / 160)
    value = 0.5 + 0.25 * (1 - last) + 0.75 * 0 - first
    assert known.lower(policy, ExplorationBonus())[0] == pytest.approx(value, abs=1e-13)
    # Bernstein: rewards that don't vary leave the variance of the value alone, so that only reaches differ.
    thin = [7 * x / (3 * (n - 1)) for x, n in zip(level, (80, 400), strict=True)]
    high, low = 1.0, thin[1]  # upper values of the second step: clipped at what can be earned, and 0 + b
    mean = 0.25 * high + 0.75 * low
    spread = math.sqrt(0.25 * high**2 + 0.75 * low**2 - mean**2)
    scaled = min(0.5 + mean + spread * math.sqrt(2 * level[0] / 79) + 2 * thin[0], 2.0)
    assert known.upper(policy, ExplorationBonus("bernstein"))[0] == pytest.approx(scaled, abs=1e-12)


def test_smaller_rewards_make_tighter_bounds() -> None:
    counts = np.full((3, 2, 2, 2), 50.0)
    rewards, policy = np.full((3, 2, 2), 0.1), np.full((1, 3, 2, 2), 0.5)
    loose = TabularKnowledge(counts, rewards)
    tight = TabularKnowledge(counts, rewards, largest=np.full(3, 0.1))
    assert loose.ceilings.tolist() == [3, 2, 1, 0] and tight.ceilings == pytest.approx([0.3, 0.2, 0.1, 0])
    gap = [k.plain(policy) - k.lower(policy, ExplorationBonus(unproved_scale=0.1)) for k in (loose, tight)]
    assert gap[1] == pytest.approx(0.1 * gap[0], rel=1e-9)


def drawn(seed: int, count: int, observed: bool) -> tuple[TabularMDP, TabularKnowledge, Array]:
    """Random processes with 0 to 300 visits of each state and action, coins for rewards where observed; policies."""
    generator = np.random.default_rng(seed)
    shape = (count, 3, 4, 3)
    p = generator.dirichlet(np.full(4, 0.5), size=shape)
    mdp = TabularMDP(p, generator.random(shape), generator.dirichlet(np.ones(4), size=count))
    n = generator.integers(0, 300, size=shape)
    counts = generator.multinomial(n, p).astype(float)
    known = TabularKnowledge(counts, mdp.rewards, initial=mdp.initial)
    if observed:
        sums = generator.binomial(counts.astype(int), mdp.rewards[..., None]).astype(float)
        known = TabularKnowledge(counts, sums=sums, squares=sums.sum(-1), initial=mdp.initial)
    return mdp, known, generator.dirichlet(np.full(3, 0.5), size=(count, 1, 3, 4))


@pytest.mark.parametrize("bonus", KINDS, ids=str)
@pytest.mark.parametrize("observed", [False, True], ids=["known", "observed"])
def test_values_lie_between_their_bounds(bonus: ExplorationBonus, observed: bool) -> None:
    mdp, known, policies = drawn(3, 1000, observed)
    # The data's own best policy, too: it was chosen by what the bounds are made of.
    policies = np.concatenate([policies, known.pessimistic(bonus)[0][:, None]], 1)
    value, low, high = mdp.values(policies), known.lower(policies, bonus), known.upper(policies, bonus)
    outside = ((value < low - 1e-12) | (value > high + 1e-12)).any(-1)
    assert outside.mean() <= bonus.delta
    assert (low >= 0).all() and (high <= 3 + 1e-12).all() and (low <= high).all()
    _, best = mdp.optimal()
    _, optimistic = known.optimistic(bonus)
    assert (optimistic < best - 1e-12).reshape(1000, -1).any(-1).mean() <= bonus.delta
    narrow = ExplorationBonus(bonus.kind, union=bonus.union, unproved_scale=0.003)
    assert ((value < known.lower(policies, narrow)) | (value > known.upper(policies, narrow))).any(-1).mean() > 0.3


def test_what_is_proved_and_what_says_that_it_is_not() -> None:
    assert [bonus.proved for bonus in KINDS] == [True, False, False, False]
    assert not ExplorationBonus(unproved_scale=0.3).proved
    assert str(ExplorationBonus("both", unproved_scale=0.3)) == "both, strict, unproved scale 0.3"


P, R = np.full((2, 3, 2, 3), 1 / 3), np.full((2, 3, 2), 0.5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TabularMDP(P, R + 0.6), r"rewards\[0, 0, 0\] = 1.1 is outside of \[0, 1\]: scale"),
        (lambda: TabularMDP(P, R - 0.6), "outside of"),
        (lambda: TabularMDP(P, R * math.nan), "nan is outside"),
        (lambda: TabularMDP(P * 1.1, R), r"transitions\[0, 0, 0\] sums to 1.1\d* .* needed a distribution"),
        (lambda: TabularMDP(P * math.nan, R), "sums to nan"),
        (lambda: TabularMDP(P - np.array([0.5, 0, -0.5]), R), "least entry -0.1"),
        (lambda: TabularMDP(P[..., :2], R), "transitions have shape"),
        (lambda: TabularMDP(P, R[:1]), "rewards have shape"),
        (lambda: TabularMDP(P, R, [0.5, 0.5, 0.5]), "initial.* sums to 1.5"),
        (lambda: TabularMDP(P, R, [1.0, 0.0]), "initial has shape"),
        (lambda: TabularMDP(P, R).value(np.full((2, 3, 2), 0.4)), "policy.* sums to 0.8"),
        (lambda: TabularMDP(P, R).value(np.full((2, 2, 2), 0.5)), "policies have shape"),
        (lambda: TabularKnowledge(-P, R), "counts.* is outside"),
        (lambda: TabularKnowledge(P * math.nan, R), "counts.* = nan"),
        (lambda: TabularKnowledge(P), "give rewards where they are known"),
        (lambda: TabularKnowledge(P, R, largest=np.array([1.0, 0.4])), "above `largest`"),
        (lambda: TabularKnowledge(P, R, largest=np.array([1.0])), "largest has shape"),
        (lambda: TabularKnowledge(P, sums=P * 1.5, squares=R), "exceed `largest`"),
        (lambda: TabularKnowledge(10 * P, sums=5 * P, squares=R), "squares are smaller"),
        (lambda: TabularKnowledge(P, sums=P, squares=R[:1]), "don't fit counts"),
        (lambda: ExplorationBonus(delta=0), r"delta = 0 must be in \(0, 1\)"),
        (lambda: ExplorationBonus(unproved_scale=math.inf), "unproved_scale = inf"),
        (lambda: ExplorationBonus("chernoff"), "kind = 'chernoff' is unknown"),  # pyright: ignore[reportArgumentType]
        (lambda: one_hot([0, 2], 2), "actions must be integers in 0 to 1"),
        (lambda: softmax_policy(R, 0), "temperature = 0 must be above 0"),
    ],
)
def test_what_is_wrong_is_named(make: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=told):
        make()
