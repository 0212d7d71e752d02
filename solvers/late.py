"""A start in the middle of a trajectory, of a rule that remembers the slopes of the steps before."""

from __future__ import annotations

from torch import Tensor

from .walk import Ask, History, Rule, Steps, forward


def late_start(rule: Rule, begin: int, columns: int, consistent: bool = True) -> Rule:
    """The rule for a walk that begins at a later step: the slope there stands in for all that it would remember.

    Where the denoised D does not change, the slope (x - D) / sigma is the same along the whole trajectory, so that it
    is what the steps before would have left. The network is told the plain noise level of the state. The rule combines
    what it then has, which in a step of one call is Euler's as long as its weights sum to one; where they do not, the
    step is made Euler's.

    Args:
        rule: with a history of slopes, as `parallel` has.
        begin: the first step of the walk.
        columns: slopes that it remembers.
        consistent: its weights sum to one.
    """

    def starting(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        if n != begin:
            return (yield from rule(x, sigma, sigma_next, n, history))
        slope = (yield Ask(x[None], sigma[None]))[0]
        stand_in = (slope,) * columns
        if not consistent:
            return slope, stand_in
        asking = rule(x, sigma, sigma_next, n, stand_in)
        # Where the rule asks for a fan at once, it was not evaluated: the slope is in its place.
        return (yield from forward(asking, slope.expand_as(next(asking).points)))

    return starting
