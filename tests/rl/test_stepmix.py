"""StepMix, EpsMix and rivals: mixtures against closed forms, episodes against a plain loop, floors by exact values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from epd.rl import stepmix_episodes
from epd.rl.stepmix import NotCertified, candidates, eps_mix, offline_baseline, step_mix
from epd.rl.stepmix_episodes import History, play_episodes
from epd.rl.tabular import Array, TabularMDP, random_mdp, softmax_policy
from epd.rl.tabular_bounds import ExplorationBonus, TabularKnowledge

PROVED = ExplorationBonus()
USUAL = ExplorationBonus("both", union="simple")
SHARP = ExplorationBonus(unproved_scale=0.1)  # leaves the baseline within some hundred episodes


def worlds(count: int) -> tuple[TabularMDP, Array, Array]:
    """So many random processes of the paper's size, soft baselines near the best policy, and their values."""
    made = [random_mdp(np.random.default_rng(seed), 3, 5, 5) for seed in range(count)]
    mdp = TabularMDP(*(np.stack([getattr(m, n) for m in made]) for n in ("transitions", "rewards", "initial")))
    baseline = softmax_policy(mdp.optimal()[1], 0.1)
    return mdp, baseline, mdp.value(baseline)


def exact(mdp: TabularMDP) -> TabularKnowledge:
    """As if everything had been seen 1e16 times."""
    return TabularKnowledge(1e16 * mdp.transitions, mdp.rewards, initial=mdp.initial)


def some_knowledge(seed: int, visits: int) -> tuple[TabularMDP, TabularKnowledge, Array, Array]:
    """Of eight processes, seen where a baseline goes; floors between its lower bound and the optimistic policy's."""
    generator = np.random.default_rng(seed)
    made = [random_mdp(generator, 4, 3, 3) for _ in range(8)]
    mdp = TabularMDP(*(np.stack([getattr(m, n) for m in made]) for n in ("transitions", "rewards", "initial")))
    baseline = softmax_policy(mdp.optimal()[1], 0.1)
    seen = generator.binomial(visits, baseline * generator.random(baseline.shape))
    counts = generator.multinomial(seen, mdp.transitions)
    known = TabularKnowledge(counts.astype(float), mdp.rewards, initial=mdp.initial)
    ends = known.lower(np.stack([known.optimistic(USUAL)[0], baseline], 1), USUAL)
    return mdp, known, baseline, ends.min(1) + generator.random(8) * np.ptp(ends, 1)


def test_neighbouring_candidates_differ_in_one_step() -> None:
    a, b = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 6, 4, 5))  # 6 trials of 4 steps
    mixed = candidates(a, b)
    assert mixed.shape == (6, 5, 4, 5, 3)
    assert (mixed[:, 0] == b).all() and (mixed[:, 4] == a).all()
    for j in range(4):
        differ = (mixed[:, j] != mixed[:, j + 1]).any((2, 3))  # (trials, steps)
        assert (differ == (np.arange(4) == j)).all()


def expected_start(lower: Array, floor: float) -> int:
    """By the definition, one trial: lower bounds of pi^0, ..., pi^H."""
    if lower[0] >= floor:
        return 0
    return next((j for j in range(len(lower)) if all(x >= floor for x in lower[j:])), len(lower) - 1)


def test_the_share_agrees_with_the_closed_form_where_the_model_is_exact() -> None:
    mdp, _, _ = worlds(20)
    known, (best, q) = exact(mdp), mdp.optimal()
    hopes = softmax_policy(-q, 0.2)  # optimism that is wrong: at an exact model only such is worse than a baseline
    values = mdp.values(candidates(best, hopes))
    for part in (0.1, 0.5, 0.9):
        floor = values[:, 0] + part * (values[:, 3] - values[:, 0])
        made = step_mix(known, best, floor, PROVED, optimistic=hopes)
        starts = [expected_start(row, x) for row, x in zip(values, floor, strict=True)]
        assert made.start.tolist() == starts and min(starts) >= 1
        above, below = (values[np.arange(20), made.start - d] for d in (0, 1))
        closed = (above - floor) / (above - below)
        assert (np.abs(made.rho - closed) < 1 / 4096 + 1e-4).all() and (made.rho <= closed + 1e-9).all()
        played = mdp.value(made.policy)
        assert (played >= floor - 1e-6).all() and (np.abs(played - floor) < 2e-3).all()
        coin = eps_mix(known, best, floor, PROVED, optimistic=hopes).coin
        assert coin.tolist() == pytest.approx([1 - part] * 20, abs=1e-5)


@pytest.mark.parametrize("bonus", [PROVED, USUAL, ExplorationBonus("bernstein")], ids=str)
def test_mixtures_follow_the_definition(bonus: ExplorationBonus) -> None:
    seen = set()
    for seed, visits in enumerate((40, 400, 4000, 40000, 400000)):
        _, known, baseline, floor = some_knowledge(seed, visits)
        made = step_mix(known, baseline, floor, bonus)
        mixed = candidates(baseline, made.optimistic)
        lower = known.lower(mixed, bonus)
        direct = known.lower(made.policy[:, None], bonus)[:, 0]
        assert direct.tolist() == pytest.approx(made.lower.tolist(), abs=1e-12)
        for t in range(8):
            j, rho, row = int(made.start[t]), float(made.rho[t]), lower[t]
            certified = row[0] >= floor[t] or row[-1] >= floor[t]
            assert made.certified[t] == certified and (not certified or direct[t] >= floor[t])
            assert j == (expected_start(row, floor[t]) if certified else 4)
            if j == 0 or not certified:
                assert rho == float(j == 0) and (made.policy[t] == mixed[t, j]).all()
                continue
            wanted = mixed[t, j].copy()
            wanted[j - 1] = (1 - rho) * baseline[t, j - 1] + rho * made.optimistic[t, j - 1]
            assert np.allclose(made.policy[t], wanted, atol=1e-15)
            more = mixed[t].copy()[j]
            more[j - 1] += (rho + 1 / 4096) * (made.optimistic[t, j - 1] - baseline[t, j - 1])
            one = TabularKnowledge(known.counts[t], known.means[t])
            assert one.lower(more[None], bonus)[0] < floor[t]
            seen.add(j)
    assert len(seen) >= 3, seen


def test_the_coin_keeps_the_floor_in_expectation() -> None:
    for seed, visits in enumerate((400, 40000)):
        _, known, baseline, floor = some_knowledge(seed, visits)
        made = eps_mix(known, baseline, floor, USUAL)
        ends = known.lower(np.stack([made.optimistic, baseline], 1), USUAL)
        inside = (made.coin > 0) & (made.coin < 1)
        assert made.lower.tolist() == pytest.approx((made.coin * ends[:, 0] + (1 - made.coin) * ends[:, 1]).tolist())
        assert inside.any() and made.lower[inside].tolist() == pytest.approx(floor[inside].tolist(), abs=1e-12)
        assert (made.coin[ends[:, 0] >= floor] == 1).all() and (made.coin[~made.certified] == 0).all()


def by_a_plain_loop(mdp: TabularMDP, baseline: Array, floor: float, episodes: int, seed: int) -> tuple[Array, Array]:
    """Values of one trial of StepMix, episode by episode, and the counts at its end."""
    steps, states, actions = mdp.sizes
    draws = np.random.default_rng(seed).random((episodes, 2 * steps + 2))
    counts, values, policy, planned = np.zeros((steps, states, actions, states)), [], baseline, None
    for k in range(episodes):
        n = counts.sum(-1)
        if planned is None or ((n > planned) & (n >= planned + np.maximum(np.ceil(0.05 * planned), 1))).any():
            known, planned = TabularKnowledge(counts.copy(), mdp.rewards, initial=mdp.initial), n
            policy = step_mix(known, baseline, floor, SHARP).policy
        values.append(float(mdp.value(policy)))
        state = int((draws[k, -2] >= mdp.initial.cumsum()).sum())
        for h in range(steps):
            action = int((draws[k, 2 * h] * policy[h, state].sum() >= policy[h, state].cumsum()).sum())
            p = mdp.transitions[h, state, action]
            after = int((draws[k, 2 * h + 1] * p.sum() >= p.cumsum()).sum())
            counts[h, state, action, after] += 1
            state = after
    return np.array(values), counts


def same(a: History, b: History, rows: Any = slice(None)) -> None:  # noqa: ANN401
    for name in ("values", "start", "rho", "optimistic", "plans", "counts"):
        assert (getattr(a, name)[rows] == getattr(b, name)).all(), name
    assert np.abs(a.lower[rows] - b.lower).max() < 1e-12  # beside other candidates products are rounded otherwise


def test_many_trials_are_a_plain_loop_each(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp, baseline, value = worlds(3)
    history = play_episodes(mdp, baseline, 0.8 * value, "stepmix", 600, SHARP, seeds=(5, 6, 7))
    assert (history.start < 3).any() and (history.start == 3).any()
    for t in range(3):
        alone = TabularMDP(mdp.transitions[t], mdp.rewards[t], mdp.initial[t])
        values, counts = by_a_plain_loop(alone, baseline[t], float(0.8 * value[t]), 600, 5 + t)
        assert np.abs(history.values[t] - values).max() < 1e-12 and (history.counts[t] == counts).all()
    one = TabularMDP(mdp.transitions[1], mdp.rewards[1], mdp.initial[1])
    same(history, play_episodes(one, baseline[1], 0.8 * value[1], "stepmix", 600, SHARP, seeds=(6,)), slice(1, 2))
    monkeypatch.setattr(stepmix_episodes, "LONGEST", 3)
    same(history, play_episodes(mdp, baseline, 0.8 * value, "stepmix", 600, SHARP, seeds=(5, 6, 7)))


def test_without_a_floor_it_is_optimism_exactly() -> None:
    mdp, baseline, _ = worlds(3)
    optimism = play_episodes(mdp, baseline, 0.0, "optimism", 400, USUAL, seeds=range(3))
    for method in ("stepmix", "epsmix"):
        same(optimism, play_episodes(mdp, baseline, 0.0, method, 400, USUAL, seeds=range(3)))
    assert optimism.optimistic.all() and (optimism.rho == 1).all()


def test_the_coin_comes_down_as_often_as_it_should() -> None:
    mdp, baseline, value = worlds(10)
    sharp = ExplorationBonus(unproved_scale=0.3)
    history = play_episodes(mdp, baseline, 0.8 * value, "epsmix", 1500, sharp, seeds=range(10))
    inside = (history.rho > 0) & (history.rho < 1)
    rho, whole = history.rho[inside], history.optimistic[inside]
    assert inside.sum() > 500
    assert abs(whole.sum() - rho.sum()) < 4 * math.sqrt((rho * (1 - rho)).sum())
    assert history.optimistic[history.rho == 1].all() and not history.optimistic[history.rho == 0].any()


def trap() -> TabularMDP:
    """Action 1 pays more now (0.7 for 0.5) and leads to state 2, where nothing is to be had; action 0 to 0.9."""
    transitions, rewards = np.zeros((2, 3, 2, 3)), np.zeros((2, 3, 2))
    transitions[:, :, 0, 1] = transitions[:, :, 1, 2] = 1
    rewards[0, 0], rewards[1, 1] = (0.5, 0.7), 0.9
    return TabularMDP(transitions, rewards)


def test_the_floor_is_kept_where_plain_optimism_breaks_it() -> None:
    mdp = trap()
    baseline = softmax_policy(mdp.optimal()[1], 0.3)
    floor = 0.8 * float(mdp.value(baseline))
    played = {m: play_episodes(mdp, baseline, floor, m, 1500, PROVED, seeds=range(20)) for m in ("stepmix", "epsmix")}
    for history in played.values():
        assert not history.violations.any() and (history.rho > 0).any(1).all()
        assert (history.values[:, -1] > history.values[:, 0]).all()  # and it has learned
    assert play_episodes(mdp, baseline, floor, "optimism", 1500, PROVED, seeds=range(20)).violations.sum(1).min() > 5


def test_the_cumulative_rival_keeps_the_average_only() -> None:
    mdp, baseline, value = worlds(10)
    history = play_episodes(mdp, baseline, 0.8 * value, "cumulative", 3000, PROVED, seeds=range(10))
    surplus = (history.values - history.floor[:, None]).cumsum(1)
    assert (surplus > -1e-9).all() and history.violations.sum() > 20
    assert (history.start[history.optimistic] == 0).all() and (history.start[~history.optimistic] == 3).all()


@pytest.mark.slow
def test_twenty_seeds_of_twenty_thousand_episodes_keep_the_floor_and_learn() -> None:
    mdp, baseline, value = worlds(20)
    best = mdp.value(mdp.optimal()[0])
    regret = {}
    for method in ("stepmix", "epsmix", "optimism"):
        history = play_episodes(mdp, baseline, 0.8 * value, method, 20000, PROVED, seeds=range(20))
        assert (history.violations.sum() == 0) == (method != "optimism"), method
        regret[method] = (best[:, None] - history.values).mean(0).cumsum()
        if method != "optimism":  # which begins with little regret and keeps it longer
            assert regret[method][-1] < 1.6 * regret[method][9999]
    assert regret["stepmix"][-1] < regret["epsmix"][-1]


def gathered(episodes: int) -> tuple[TabularMDP, TabularKnowledge, float]:
    """What a uniform policy has seen of a process whose reward depends on the action alone, and the best value."""
    mdp = random_mdp(np.random.default_rng(1), 2, 3, 3)
    uniform = np.full((2, 3, 3), 1 / 3)
    counts = play_episodes(mdp, uniform, 0.0, "baseline", episodes, PROVED, growth=0.9).counts[0]
    return mdp, TabularKnowledge(counts, mdp.rewards), float(mdp.value(mdp.optimal()[0]))


def test_offline_data_give_a_baseline_with_a_certificate_or_say_what_is_missing() -> None:
    mdp, known, best = gathered(6000)
    floor = 0.8 * best
    policy, low = offline_baseline(known, floor, PROVED)
    assert floor <= low <= mdp.value(policy) <= best + 1e-12
    history = play_episodes(mdp, policy, floor, "stepmix", 300, PROVED, seeds=range(3), offline=known.counts)
    assert not history.violations.any() and (history.start < 2).all()  # it explores from the first episode on
    assert (history.counts.sum((1, 2, 3, 4)) == known.counts.sum() + 2 * 300).all()
    _, few, _ = gathered(200)
    with pytest.raises(NotCertified, match=r"certify [\d.]+ .*below floor = [\d.]+: collect about \d+ times as many"):
        offline_baseline(few, floor, PROVED)
    with pytest.raises(NotCertified, match="no policy that reaches it, lower the floor, or give a baseline"):
        offline_baseline(known, 1.05 * best, PROVED)
    with pytest.raises(ValueError, match="needed .* data of one process"):
        offline_baseline(TabularKnowledge(known.counts[None], known.means[None]), floor, PROVED)


def test_what_is_wrong_is_named() -> None:
    mdp, baselines, values = worlds(1)
    baseline, value = baselines[0], float(values[0])

    def played(floor: float = 0.5, policy: Array = baseline, **more: Any) -> History:  # noqa: ANN401
        given = {"method": "stepmix", "episodes": 3, "bonus": PROVED} | more
        return play_episodes(mdp, policy, floor, **given)

    with pytest.raises(ValueError, match="above the baseline's own value .*: no method could keep it"):
        played(1.01 * value)
    for floor in (-0.1, 3.5, math.nan):
        with pytest.raises(ValueError, match=r"floor = .* must be in \[0, 3\]|above the baseline's own value"):
            played(floor)
    with pytest.raises(ValueError, match="policy.* sums to 1.09"):
        played(policy=1.1 * baseline)
    with pytest.raises(ValueError, match="method = 'ucb' is unknown"):
        played(method="ucb")
    with pytest.raises(ValueError, match="episodes = 0 and 1 seeds"):
        played(episodes=0)
    with pytest.raises(ValueError, match="and 0 seeds"):
        played(seeds=())
    with pytest.raises(ValueError, match=r"growth = 1 must be in \[0, 1\)"):
        played(growth=1)
    with pytest.raises(ValueError, match="counts"):
        played(offline=np.full((3, 5, 5, 5), -1.0))
