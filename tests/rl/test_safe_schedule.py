"""The tuner of schedules on a process that is known exactly: what it plays, what it certifies, what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

from epd.rl.safe_schedule import ScheduleSpace, ScheduleTuner
from epd.rl.stepmix import NotCertified
from epd.rl.stepmix_episodes import play_episodes
from epd.rl.tabular import Array, TabularMDP
from epd.rl.tabular_bounds import ExplorationBonus, TabularKnowledge

SPACE = ScheduleSpace({"full": 1.0, "cached": 0.2}, edges=(1.0,), decisions=3)
GOOD = np.array([[0.9, 0.8], [0.9, 0.3]])  # quality by bucket and setting: caching is good where little has changed
MOVES = np.array([[0.1, 0.4], [0.5, 0.8]])  # chance that much has changed next
QUICK = ExplorationBonus(unproved_scale=0.15)


def truth() -> TabularMDP:
    """The process that `Sampler` is."""
    saved = np.array([0.0, 0.8])
    rewards = np.broadcast_to((0.5 * GOOD + 0.5 * saved) / 3, (3, 2, 2))
    return TabularMDP(np.broadcast_to(np.stack([1 - MOVES, MOVES], -1), (3, 2, 2, 2)), rewards)


class Sampler:
    """Runs whose quality is 0 or 1."""

    def __init__(self, seed: int) -> None:
        self.generator, self.asked = np.random.default_rng(seed), 0

    def __call__(self, choose: Any, runs: int) -> Array:  # noqa: ANN401
        bucket, out = np.zeros(runs, int), []
        for h in range(3):
            actions = choose(h, 2.0 * bucket if h else np.full(runs, 7.0))  # at first there is nothing to compare with
            self.asked += runs
            out.append(self.generator.random(runs) < GOOD[bucket, actions])
            bucket = (self.generator.random(runs) < MOVES[bucket, actions]).astype(int)
        return np.stack(out, 1).astype(float)


def test_it_learns_the_cheaper_schedule_and_never_plays_below_the_floor() -> None:
    mdp, sampler, generator = truth(), Sampler(0), np.random.default_rng(1)
    baseline = SPACE.schedule(["full", "full", "full"])
    floor = 0.9 * float(mdp.value(baseline))
    tuner = ScheduleTuner(SPACE, ["full"] * 3, floor, QUICK)
    first, values = tuner.schedule(), []
    assert first.settings == (("full", "full"),) * 3 and first.lower < floor and first.runs == 0
    for _ in range(40):
        played = tuner.play(sampler, 100, generator)
        values.append(float(mdp.value(played.mixture.policy)))
        assert played.shares.sum(1) == pytest.approx([1, 1, 1])
        assert played.cost == pytest.approx(float((played.shares @ [1.0, 0.2]).mean()))
    assert min(values) >= floor - 1e-12 and values[-1] > values[0] + 0.05
    found = tuner.schedule()
    best = float(mdp.value(mdp.optimal()[0]))
    policy = tuner.known.pessimistic(QUICK)[0]
    assert floor <= found.lower <= float(mdp.value(policy)) <= best
    assert found.settings[0][0] == "cached" and found.runs == 4000 and sampler.asked == 12000
    measured = tuner.process()
    seen = tuner.known.visits > 300
    assert np.abs(measured.rewards - mdp.rewards)[seen].max() < 0.02 and seen.sum() > 6
    assert np.abs(measured.transitions - mdp.transitions)[:2][seen[:2]].max() < 0.1
    assert measured.rewards[0, 1].tolist() == [0, 0] and (measured.transitions[0, 1] == [0, 1]).all()  # never seen
    again = play_episodes(measured, baseline, floor, "stepmix", 50, QUICK, offline=tuner.known.counts)
    assert not again.violations.any()


def test_logged_runs_count_as_its_own_do() -> None:
    kept: list[tuple[Array, Any, Array]] = []

    def logging(choose: Any, runs: int) -> Array:  # noqa: ANN401
        rows: list[tuple[Array, Any]] = []

        def listening(step: int, change: Array) -> Any:  # noqa: ANN401
            rows.append((change, choose(step, change)))
            return rows[-1][1]

        good = Sampler(3)(listening, runs)
        kept.append((np.stack([c for c, _ in rows], 1), np.stack([a for _, a in rows], 1), good))
        return good

    online = ScheduleTuner(SPACE, ["full", "cached", "full"], 0.1, QUICK)
    online.play(logging, 64, np.random.default_rng(0))
    offline = ScheduleTuner(SPACE, ["full", "cached", "full"], 0.1, QUICK)
    offline.record(*kept[0])
    for name in ("counts", "sums", "squares"):
        assert (getattr(online.known, name) == getattr(offline.known, name)).all() and getattr(online.known, name).any()
    changes, actions, good = kept[0]
    assert online.known.visits[0].tolist() == [[(actions[:, 0] == a).sum() for a in (0, 1)], [0, 0]]
    wanted = ((0.5 * good + 0.5 * np.array([0, 0.8])[actions]) / 3).sum()
    assert online.known.sums is not None and online.known.sums.sum() == pytest.approx(wanted)
    grown = ScheduleTuner(SPACE, ["full", "cached", "full"], 0.1, QUICK, logged=offline.known)
    assert grown.schedule() == offline.schedule()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tuner: pickle.loads(pickle.dumps(tuner))])
def test_a_tuner_survives_a_restart(copied: Any) -> None:  # noqa: ANN401
    tuner = ScheduleTuner(SPACE, ["full"] * 3, 0.4, QUICK)
    tuner.play(Sampler(0), 50, np.random.default_rng(0))
    other = copied(tuner)
    assert other.schedule() == tuner.schedule() and (other.known.counts == tuner.known.counts).all()
    assert copied(SPACE) == SPACE and hash(copied(SPACE)) == hash(SPACE)
    plays = [one.play(Sampler(1), 50, np.random.default_rng(1)) for one in (tuner, other)]
    assert plays[0].earned == plays[1].earned


def test_by_coin_whole_runs_are_the_optimistic_ones() -> None:
    tuner = ScheduleTuner(SPACE, ["full"] * 3, 0.4, QUICK, method="epsmix")
    generator = np.random.default_rng(5)
    plays = [tuner.play(Sampler(k), 50, generator) for k in range(30)]
    assert all((p.mixture.policy == p.mixture.optimistic).all() for p in plays)
    for play in plays:
        if play.mixture.coin == 0:
            assert (play.shares == [1, 0]).all()  # the baseline alone
    assert plays[0].mixture.coin == 0 and plays[-1].mixture.coin > 0


def test_logged_runs_alone_make_a_baseline_if_they_certify_it() -> None:
    logger = ScheduleTuner(SPACE, np.full((3, 2, 2), 0.5), 0.0, QUICK)
    logger.record(*logged(3000))
    tuner = ScheduleTuner(SPACE, None, 0.35, QUICK, logged=logger.known)
    assert tuner.plan().certified and tuner.schedule().lower >= 0.35
    with pytest.raises(NotCertified, match=r"certify .*below floor = 0.75"):
        ScheduleTuner(SPACE, None, 0.75, QUICK, logged=logger.known)
    with pytest.raises(NotCertified, match="12 of 12 .* never seen"):
        ScheduleTuner(SPACE, None, 0.1)


def logged(runs: int) -> tuple[Array, Array, Array]:
    """Runs of random settings."""
    generator, changes, actions = np.random.default_rng(2), [], []

    def choose(_: int, change: Array) -> Array:
        changes.append(change)
        actions.append(generator.integers(0, 2, runs))
        return actions[-1]

    good = Sampler(8)(choose, runs)
    return np.stack(changes, 1), np.stack(actions, 1), good


def lazy(choose: Any, runs: int) -> Array:  # noqa: ANN401
    choose(0, np.zeros(runs))
    return np.ones((runs, 3))


def skipping(choose: Any, runs: int) -> Array:  # noqa: ANN401
    choose(1, np.zeros(runs))
    return np.ones((runs, 3))


def nan_at_last(choose: Any, runs: int) -> Array:  # noqa: ANN401
    for h in range(3):
        choose(h, np.zeros(runs))
    return np.full((runs, 3), math.nan)


def diverged(choose: Any, runs: int) -> Array:  # noqa: ANN401
    choose(0, np.zeros(runs))
    choose(1, np.full(runs, math.nan))
    return np.ones((runs, 3))


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        (lazy, "asked for 1 decisions, needed 3"),
        (skipping, "needed is 0 with"),
        (nan_at_last, "qualities.* = nan is outside of"),
        (diverged, "changes of decision 1 hold NaN"),
    ],
)
def test_a_sampler_that_is_none_is_refused_and_nothing_learned(sampler: Any, told: str) -> None:  # noqa: ANN401
    tuner = ScheduleTuner(SPACE, ["full"] * 3, 0.1)
    with pytest.raises(ValueError, match=told):
        tuner.play(sampler, 4, np.random.default_rng(0))
    assert not tuner.known.counts.any()


def fresh(baseline: Any = ("full",) * 3, floor: float = 0.1, **more: Any) -> ScheduleTuner:  # noqa: ANN401
    return ScheduleTuner(SPACE, baseline, floor, **more)


KNOWN = TabularKnowledge(np.ones((3, 2, 2, 2)), truth().rewards)
RUNS, FULL = np.ones((4, 3)), np.zeros((4, 3), int)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ScheduleSpace({"full": 1}, (), 3), "at least two settings"),
        (lambda: ScheduleSpace({"full": 1, "cached": 1.2}, (), 3), "costs.* = 1.2 is outside"),
        (lambda: ScheduleSpace({"full": 1, "cached": 0}, (0.2, 0.1), 3), "edges = .* increase"),
        (lambda: ScheduleSpace({"full": 1, "cached": 0}, (math.nan,), 3), "edges = .* finite"),
        (lambda: ScheduleSpace({"full": 1, "cached": 0}, (), 0), "decisions = 0"),
        (lambda: ScheduleSpace({"full": 1, "cached": 0}, (), 2, share=1.5), "share = 1.5"),
        (lambda: fresh(["full", "full"]), "give 3 names of full, cached"),
        (lambda: fresh(["full", "full", "sparse"]), "give 3 names of full, cached"),
        (lambda: fresh(floor=1.1), r"floor = 1.1 must be in \[0, 1\]"),
        (lambda: fresh(floor=math.nan), "floor = nan"),
        (lambda: fresh(np.ones((3, 2, 2))), "policy.* sums to 2"),
        (lambda: fresh(method="ucb"), "method = 'ucb'"),
        (lambda: fresh().play(Sampler(0), 0, np.random.default_rng(0)), "runs = 0 must be at least 1"),
        (lambda: fresh(logged=KNOWN), "lack observed rewards"),
        (lambda: fresh().record(RUNS, FULL + 2, RUNS), "in 0 to 1"),
        (lambda: fresh().record(RUNS, RUNS, RUNS), "actions must be integers"),
        (lambda: fresh().record(RUNS[:, :2], FULL[:, :2], RUNS), "with H = 3"),
        (lambda: fresh().record(RUNS, FULL, RUNS[:, :1]), "qualities have shape"),
        (lambda: fresh().record(RUNS, FULL, 2 * RUNS), "qualities.* = 2.0 is outside"),
    ],
)
def test_what_is_wrong_is_named(make: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=told):
        make()
