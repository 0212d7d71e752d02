"""How many prompts explore: exact cases, monotony, and a bandit whose expected reward keeps its floor."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.differences import normal
from helpers.policies import generator
from hypothesis import given, settings
from hypothesis import strategies as st

from epd.rl.conservative import confidence_sequence
from epd.rl.exploration import exploring, exploring_share, floor_of

NONE = torch.zeros(0, dtype=torch.float64)


def test_the_floor_is_below_the_mean_by_allowed_standard_deviations() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0])
    assert floor_of(rewards, 0.0) == 2 and floor_of(rewards, 0.5) == 1.5
    assert math.isclose(floor_of(3 * rewards + 7, 0.5), 3 * 1.5 + 7)


def test_shares_by_hand() -> None:
    ones, halves = torch.ones(64), torch.full((64,), 0.5)  # their bounds are their value
    assert exploring_share(halves, ones, 0.75, 0.05) == 0.5  # .5 of each is .75
    assert exploring_share(halves, ones, 0.9, 0.05) == pytest.approx(0.2)
    assert exploring_share(halves, ones, 0.5, 0.05) == 1  # sampled tables alone keep the floor
    assert exploring_share(halves, ones, 1.0, 0.05) == 0  # no room
    assert exploring_share(halves, ones, 1.1, 0.05) == 0  # the baseline itself is below
    assert exploring_share(ones, halves, 0.75, 0.05) == 1  # but sampled tables are not
    assert exploring_share(halves, ones, -math.inf, 0.05) == 1


def test_without_knowledge_the_worst_is_believed() -> None:
    seen = torch.cat([torch.ones(1000), torch.zeros(24)])
    low = confidence_sequence(seen, 0.025).low
    assert 0.9 < low < 1
    assert exploring_share(NONE, seen, 0.9, 0.05) == pytest.approx((low - 0.9) / low)  # as bad as the worst seen
    assert exploring_share(NONE, seen, 0.9, 0.05, worst=-1.0) == pytest.approx((low - 0.9) / (low + 1))
    # Sixty-three perfect rewards are too few to be believed, one bad one is not.
    assert exploring_share(torch.ones(63), seen, 0.9, 0.05) == pytest.approx((low - 0.9) / low)
    assert exploring_share(-torch.ones(1), seen, 0.9, 0.05) == pytest.approx((low - 0.9) / (low + 1))
    assert exploring_share(NONE, NONE, 0.9, 0.05) == 0
    assert exploring_share(NONE, torch.ones(63), 0.9, 0.05) == 0
    assert exploring_share(NONE, NONE, 0.9, 0.05, worst=0.95) == 1
    # No reward seen was below the floor: still, not more than half.
    assert exploring_share(NONE, torch.ones(64), 0.9, 0.05) == pytest.approx(0.5)
    assert exploring_share(torch.ones(63), torch.ones(64), 0.9, 0.05) == pytest.approx(0.5)
    assert exploring_share(torch.ones(64), torch.ones(64), 0.9, 0.05) == 1
    assert exploring_share(NONE, torch.ones(64), 1.0, 0.05) == 0


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(-2, 2), st.floats(-2, 2), st.floats(0.01, 0.2))
def test_the_mixture_keeps_the_floor_and_no_larger_share_does(seed: int, mean: float, floor: float, a: float) -> None:
    draws = normal(2, 100, generator(seed))
    policy, baseline, worst = draws[0] + mean, draws[1] + 1, -20.0
    p = exploring_share(policy, baseline, floor, a, worst)
    low, base = (confidence_sequence(x, a / 2).low for x in (policy, baseline))
    assert 0 <= p <= 1
    if p:
        assert p * low + (1 - p) * base >= floor - 1e-9
    if p < 1:
        assert base < floor or (p + 1e-6) * low + (1 - p - 1e-6) * base < floor
    assert exploring_share(policy + 0.1, baseline, floor, a, worst) >= p
    assert exploring_share(policy, baseline, floor + 0.1, a, worst) <= p
    assert exploring_share(policy[:63], baseline, floor, a, worst) <= p


def test_shares_are_drawn() -> None:
    assert exploring(1000, 1.0, generator()).all() and not exploring(1000, 0.0, generator()).any()
    drawn = exploring(10_000, 0.3, generator())
    assert drawn.shape == (10_000,) and drawn.dtype == torch.bool
    assert abs(int(drawn.sum()) - 3000) < 4 * math.sqrt(10_000 * 0.3 * 0.7)
    assert torch.equal(drawn, exploring(10_000, 0.3, generator()))


def bandit(mean: float, worst: float | None, seed: int, batches: int = 40) -> tuple[list[float], float]:
    """The last share, and each batch's expected reward less the floor: a baseline of mean 1, tables of another."""
    g = generator(seed)
    baseline, policy = 1 + 0.5 * normal(1, 256, g)[0], NONE
    floor, shares = 0.75, []
    for _ in range(batches):
        shares.append(exploring_share(policy, baseline, floor, 0.05, worst))
        explores = exploring(64, shares[-1], g)
        rewards = 0.5 * normal(1, 64, g)[0] + torch.where(explores, mean, 1.0)
        policy, baseline = torch.cat([policy, rewards[explores]]), torch.cat([baseline, rewards[~explores]])
    return [p * mean + (1 - p) - floor for p in shares], shares[-1]


def test_bad_tables_keep_every_batch_above_the_floor_in_nearly_all_runs() -> None:
    # Far below all that the baseline shows, with a known bound; and as bad as its worst, without one.
    for mean, worst in ((-3.0, -7.0), (-0.3, None)):
        runs = [bandit(mean, worst, seed) for seed in range(60)]
        assert sum(min(above) >= 0 for above, _ in runs) >= 0.95 * len(runs)
        assert all(0 < share < 0.25 / (1 - mean) for _, share in runs)


def test_tables_worse_than_all_that_was_seen_keep_the_running_mean_above_the_floor() -> None:
    runs = [bandit(-3.0, None, seed)[0] for seed in range(60)]
    assert any(min(above) < 0 for above in runs)  # the first batches know no better
    assert sum(sum(above) >= 0 for above in runs) >= 0.95 * len(runs)


def test_good_tables_take_over() -> None:
    for mean in (1.0, 1.5):
        assert all(bandit(mean, None, seed)[1] == 1 for seed in range(20))


def test_what_is_wrong_is_said() -> None:
    ones = torch.ones(64)
    with pytest.raises(ValueError, match="baseline_rewards have shape .1,., needed .n,. with n >= 2"):
        floor_of(torch.ones(1), 0.1)
    for allowed in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"allowed = .* must be at least 0"):
            floor_of(ones, allowed)
    with pytest.raises(ValueError, match="floor is NaN"):
        exploring_share(ones, ones, math.nan, 0.05)
    with pytest.raises(ValueError, match="alpha = "):
        exploring_share(ones, ones, 0.5, 2.0)
    with pytest.raises(ValueError, match=r"needed \(n,\)"):
        exploring_share(ones.reshape(8, 8), ones, 0.5, 0.05)
    with pytest.raises(ValueError, match="is not finite"):
        exploring_share(ones / 0, ones, 0.5, 0.05)
    for worst in (1.5, math.nan):
        with pytest.raises(ValueError, match=r"worst = .* is not below the reward 1.0"):
            exploring_share(ones, ones, 0.5, 0.05, worst)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"share = .* must be in \[0, 1\]"):
            exploring(4, share, generator())
    with pytest.raises(ValueError, match="groups = 0"):
        exploring(0, 0.5, generator())
