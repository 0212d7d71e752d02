"""The paired sequential test: intervals by hand, their coverage, runs of many candidates, power, growing prefixes."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import differences
from helpers.policies import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epd.rl.conservative import Interval, Verdict, confidence_sequence, decide, judge, level

LOOKS = [2**k for k in range(5, 13)]  # 32, 64, ..., 4096


def test_the_interval_is_the_formula() -> None:
    x = torch.tensor([0.5, -0.25, 1.0, 0.0] * 16, dtype=torch.float64)
    n, alpha, mean = 64, 0.1, 0.3125
    s = math.sqrt(16 * sum((v - mean) ** 2 for v in (0.5, -0.25, 1.0, 0.0)) / (n - 1))
    nr = n / 512 * (2 * math.log(10) + math.log(1 + 2 * math.log(10)))  # n rho^2
    half = s * math.sqrt(2 * (nr + 1) / (n * nr) * math.log(math.sqrt(nr + 1) / alpha)) + 0.6875 * math.log(20) / n
    interval = confidence_sequence(x, alpha)
    assert (interval.mean, interval.count) == (mean, n)
    assert (interval.low, interval.high) == pytest.approx((mean - half, mean + half), abs=1e-14)


def test_zeros_are_certain_and_few_samples_know_nothing() -> None:
    zeros = confidence_sequence(torch.zeros(64), 0.05)
    assert zeros == Interval(0.0, 0.0, 0.0, 64) and judge(zeros) is Verdict.UNDECIDED
    few = confidence_sequence(torch.ones(63), 0.05)
    assert few == Interval(1.0, -math.inf, math.inf, 63) and judge(few) is Verdict.UNDECIDED


@settings(deadline=None)
@given(st.integers(64, 200), st.floats(-5, 5), st.floats(0.1, 10), st.floats(1e-6, 0.5), st.integers(0, 99))
def test_the_interval_moves_with_its_samples(n: int, by: float, scale: float, alpha: float, seed: int) -> None:
    x = differences.heavy(1, n, generator(seed))[0]
    one, other = confidence_sequence(x, alpha), confidence_sequence(by + scale * x.flip(0), alpha)
    assert (other.low, other.high) == pytest.approx((by + scale * one.low, by + scale * one.high), abs=1e-9)
    assert confidence_sequence(x, alpha / 2).low < one.low < one.mean < one.high


@pytest.mark.parametrize("name", differences.ZERO_MEAN)
def test_zero_is_outside_at_any_look_as_rarely_as_claimed(name: str) -> None:
    runs, alpha = 1000, 0.05
    x = differences.ZERO_MEAN[name](runs, LOOKS[-1], generator())
    above = below = 0
    for row in x:
        intervals = [confidence_sequence(row[:n], alpha) for n in LOOKS]
        above += any(judge(i) is Verdict.PASSED for i in intervals)
        below += any(judge(i) is Verdict.REJECTED for i in intervals)
    assert above + below <= alpha * runs, (above, below)


def test_levels_sum_to_alpha_and_decay_slowly() -> None:
    levels = [level(0.05, look) for look in range(1, 10_001)]
    assert math.isclose(sum(levels), 0.05 * (1 - 1 / math.sqrt(10_001)))
    assert all(a > b > 0 for a, b in zip(levels, levels[1:], strict=False))
    assert level(0.05, 100) > 0.05 * 6 / (math.pi * 100) ** 2
    assert math.isclose(level(0.05, 10**12), 0.05 / 2 * 1e-18, rel_tol=1e-9)


def verdict_of(x: Tensor, look: int) -> Verdict:
    return decide(lambda a, b: x[a:b], len(x), level(0.05, look))[1]


@pytest.mark.parametrize("name", [*differences.ZERO_MEAN, "lottery of a fiftieth"])
def test_few_runs_without_a_gain_pass_any_candidate(name: str) -> None:
    draw = {**differences.ZERO_MEAN, "lottery of a fiftieth": differences.lottery(0.02)}[name]
    g, runs = generator(1), 400
    # All that decide passes pass the last of its looks; it may have rejected some of them before.
    passed = [
        any(confidence_sequence(x, level(0.05, look)).low > 0 for look, x in enumerate(draw(20, 512, g), start=1))
        for _ in range(runs)
    ]
    assert sum(passed) <= 0.05 * runs, sum(passed)


def test_no_run_passes_a_harmful_candidate_and_most_are_found_out() -> None:
    g, rejected = generator(2), 0
    for _ in range(200):
        for look, x in enumerate(0.15 * differences.normal(20, 1024, g) - 0.05, start=1):
            verdict = verdict_of(x, look)
            assert verdict is not Verdict.PASSED
            rejected += verdict is Verdict.REJECTED
    assert rejected > 0.99 * 200 * 20


@pytest.mark.parametrize("look", [1, 20, 100])
def test_gains_are_found(look: int) -> None:
    continuous = 0.15 * differences.normal(100, 1024, generator(3)) + 0.05
    # A verifier's: one prompt in ten gained, 3 in 100 lost.
    u = torch.rand(100, 1024, generator=generator(4), dtype=torch.float64)
    discrete = (u < 0.1).double() - (u > 0.97).double()
    assert sum(verdict_of(x, look) is Verdict.PASSED for x in continuous) >= 99
    assert sum(verdict_of(x, look) is Verdict.PASSED for x in discrete) > 50


def looks_of(x: Tensor, first: int = 64) -> tuple[Verdict, list[tuple[int, int]], int]:
    """The verdict of decide, what it asked for and how many samples its interval is of."""
    asked = []

    def differences_of(a: int, b: int) -> Tensor:
        asked.append((a, b))
        return x[a:b]

    interval, verdict, seen = decide(differences_of, len(x), 0.05, first)
    assert torch.equal(seen, x[: interval.count]) and interval == confidence_sequence(seen, 0.05)
    return verdict, asked, interval.count


def test_decide_stops_early_for_a_rejection_alone() -> None:
    noise = 0.1 * differences.normal(1, 300, generator())[0]
    assert looks_of(noise) == (Verdict.UNDECIDED, [(0, 64), (64, 128), (128, 256), (256, 300)], 300)
    assert looks_of(noise + 1) == (Verdict.PASSED, [(0, 64), (64, 128), (128, 256), (256, 300)], 300)
    assert looks_of(noise - 1) == (Verdict.REJECTED, [(0, 64)], 64)
    assert looks_of(noise - 1, first=5) == (Verdict.REJECTED, [(0, 5), (5, 10), (10, 20), (20, 40), (40, 80)], 80)
    assert looks_of(noise[:50] - 1) == (Verdict.UNDECIDED, [(0, 50)], 50)


def test_what_is_wrong_is_said() -> None:
    x = torch.zeros(64)
    for alpha in (0.0, 1.0, math.nan):
        for call in (lambda a: confidence_sequence(x, a), lambda a: level(a, 1), lambda a: decide(lambda *_: x, 64, a)):
            with pytest.raises(ValueError, match=r"alpha = .* must be in \(0, 1\)"):
                call(alpha)
    with pytest.raises(ValueError, match="look = 0 must be at least 1"):
        level(0.05, 0)
    for shape in ((0,), (), (8, 8)):
        with pytest.raises(ValueError, match="needed .n,. with n >= 1"):
            confidence_sequence(torch.zeros(shape), 0.05)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"differences\[40\] = .* is not finite"):
            confidence_sequence(torch.where(torch.arange(64) == 40, bad, 0.0), 0.05)
    with pytest.raises(ValueError, match="count = 0"):
        decide(lambda a, b: x[a:b], 0, 0.05)
    with pytest.raises(ValueError, match="first = 0"):
        decide(lambda a, b: x[a:b], 64, 0.05, first=0)
    with pytest.raises(ValueError, match=r"differences_of\(0, 64\) has shape \(63,\), needed \(64,\)"):
        decide(lambda a, b: x[a : b - 1], 64, 0.05)
