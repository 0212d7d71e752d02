"""Whether a candidate is better than the baseline: a paired test that may be looked at after any number of samples."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MINIMUM = 64  # samples below which a spread is not believed: 32 miss a loss of one in ten in one run of thirty
TUNED = 512  # the number of samples at which the interval is narrowest for its level


@dataclass(frozen=True)
class Interval:
    """The mean of `count` samples, and bounds of what it estimates; the bounds of too few samples are infinite."""

    mean: float
    low: float
    high: float
    count: int


class Verdict(enum.Enum):
    """PASSED: better than the baseline; REJECTED: worse; UNDECIDED: the interval holds zero."""

    PASSED = "passed"
    REJECTED = "rejected"
    UNDECIDED = "undecided"


def _proper(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha} must be in (0, 1): it is the probability of being wrong; 0.05 is usual")


def confidence_sequence(differences: Tensor, alpha: float) -> Interval:
    """The interval of a mean that may be looked at after every sample: m +- (s w(n) + r log(2 / alpha) / n).

    w(n) = sqrt(2 (n rho^2 + 1) / (n rho)^2 log(sqrt(n rho^2 + 1) / alpha)), m and s are the mean and the standard
    deviation of the n samples, rho^2 = (l + log(l + 1)) / 512 with l = -2 log(alpha), and r is how far from m the
    farthest sample is. The first term is the normal mixture's; with probability 1 - alpha it holds at all n at once, in
    the limit of many samples: rewards need no bounds. The second, of the form of Bernstein's inequality, is ours: it
    vanishes faster and pays for what few samples hide, a spread that is estimated too small just when the mean is
    estimated too high.

    What it assumes: independent samples of one distribution with a finite variance (average over the noises of a
    prompt first), and that the samples show what matters. Nothing that does without bounds sees a disaster rarer than
    one in n: where nine in a hundred gain 0.1 and one in a hundred loses 0.9, a mean of zero, one run in ten looks
    certain (alpha = 0.05) at some n of 64, 128, ..., 4096, but at n = 1024 only one in a thousand.

    Args:
        differences: (n,) candidate minus baseline on the same prompt and noise; n >= 1. The interval of fewer than 64
            is infinite, that of equal ones is their value: zeros never pass.
        alpha: in (0, 1).

    Raises:
        ValueError: for another shape, no samples, samples that are not finite, or such an alpha.

    Reference: arXiv 2103.06476, Thm. 2.2 (the first term); arXiv 0907.3740, Thm. 4 (the form of the second).
    """
    _proper(alpha)
    n = differences.numel()
    if differences.ndim != 1 or not n:
        raise ValueError(f"differences have shape {tuple(differences.shape)}, needed (n,) with n >= 1: one a sample")
    if not bool(differences.isfinite().all()):
        at = int(differences.isfinite().logical_not().nonzero()[0])
        raise ValueError(f"differences[{at}] = {float(differences[at])} is not finite: see to the reward")
    differences = differences.double()
    mean = float(differences.mean())
    if n < MINIMUM:
        return Interval(mean, -math.inf, math.inf, n)
    spread = -2 * math.log(alpha)
    rho2 = (spread + math.log(spread + 1)) / TUNED
    width = math.sqrt(2 * (n * rho2 + 1) / (n * n * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha))
    largest = float((differences - mean).abs().max())
    half = float(differences.std()) * width + largest * math.log(2 / alpha) / n
    return Interval(mean, mean - half, mean + half, n)


def level(alpha: float, look: int) -> float:
    """What candidate number `look` may spend: alpha (1 / sqrt(look) - 1 / sqrt(look + 1)).

    The first k spend alpha (1 - 1 / sqrt(k + 1)) together, so all of a run stay below alpha, however many they are; by
    the union bound, whatever their dependence, as long as no candidate was made with a look at the held-out rewards.
    It falls as look^-1.5, slower than the usual 6 alpha / (pi look)^2, as later candidates are the better ones: of 1024
    samples, the hundredth candidate has an interval narrower by 8 %, for which the first one's is wider by 7 %.

    Args:
        alpha: in (0, 1), of the whole run.
        look: 1, 2, 3, ...

    Raises:
        ValueError: for values outside of these.
    """
    _proper(alpha)
    if look < 1:
        raise ValueError(f"look = {look} must be at least 1: candidates are counted from one")
    a, b = math.sqrt(look), math.sqrt(look + 1)
    return alpha / (a * b * (a + b))  # the difference without cancellation


def judge(interval: Interval) -> Verdict:
    """PASSED where the interval lies above zero, REJECTED where it lies below, otherwise UNDECIDED."""
    if interval.low > 0:
        return Verdict.PASSED
    return Verdict.REJECTED if interval.high < 0 else Verdict.UNDECIDED


def decide(
    differences_of: Callable[[int, int], Tensor], count: int, alpha: float, first: int = 64
) -> tuple[Interval, Verdict, Tensor]:
    """A candidate's interval and verdict from growing prefixes of the held-out samples, and the differences (n,) seen.

    It looks at first, 2 first, 4 first, ... and count samples and stops early for a rejection only. A candidate passes
    on all of them: an early pass would save evaluations, but leave an interval that is wider by the square root of what
    is saved, by which later candidates are compared with this one, and rare losses would have been seen by few.

    Args:
        differences_of: (a, b) -> (b - a,), candidate minus baseline on samples a, ..., b - 1; asked once for each.
        count: samples held out, >= 1; fewer than 64 decide nothing.
        alpha: in (0, 1), of this candidate: `level` of a run's.
        first: samples of the first look, >= 1.

    Raises:
        ValueError: for values outside of these, or differences of another shape or not finite.
    """
    _proper(alpha)
    for name, value in (("count", count), ("first", first)):
        if value < 1:
            raise ValueError(f"{name} = {value} must be at least 1: a number of held-out samples")
    seen, n = [], 0
    while True:
        upto = min(max(first, 2 * n), count)
        seen.append(differences_of(n, upto))
        if seen[-1].shape != (upto - n,):
            raise ValueError(f"differences_of({n}, {upto}) has shape {tuple(seen[-1].shape)}, needed ({upto - n},)")
        n, differences = upto, torch.cat(seen)
        interval = confidence_sequence(differences, alpha)
        verdict = judge(interval)
        if n == count or verdict is Verdict.REJECTED:
            return interval, verdict, differences
