"""A walk that begins in the middle of a trajectory, with a rule that remembers slopes of the steps before."""

from __future__ import annotations

from torch import Tensor

from .walk import Ask, Restart, Rule, Site, State, Walk, expand, forward, walk


def late_walk(rule: Rule, x: Tensor, levels: Tensor, begin: int, columns: int, consistent: bool = True) -> Walk:
    """The walk from the state x at levels[begin], where no slope is remembered: the first one stands in for all.

    Where the denoised D does not change, the slope (x - D) / sigma is the same along the whole trajectory: it is what
    the steps before would have left. So the first step is Euler's where the rule's weights sum to one, and is taken as
    such where they do not. The network is told the plain noise level at first.

    Args:
        rule: with a history of slopes, newest first, as `parallel` has.
        x: (B, *S).
        levels: (N+1,) or (N+1, B), float64.
        begin: the first step.
        columns: remembered slopes that the rule cannot do without; 0: it begins as any walk.
        consistent: the weights sum to one.
    """
    if begin == 0 or columns == 0:
        return (yield from walk(rule, x, levels, begin))
    while isinstance(reply := (yield Ask(x[None], levels[begin][None], site=Site(begin, 0))), Restart):
        x = reply.x
    assert reply is not None, "an Ask is answered by slopes"
    history = (reply[0],) * columns
    if not consistent:
        x = x + expand(levels[begin + 1] - levels[begin], x) * reply[0]
        moved = yield State(begin + 1, x)
        return (yield from walk(rule, moved.x if isinstance(moved, Restart) else x, levels, begin + 1, history))
    onwards = walk(rule, x, levels, begin, history)
    question = next(onwards)
    assert isinstance(question, Ask)
    # Where the first question is a fan it was not evaluated: the state's slope is in its place.
    return (yield from forward(onwards, reply.expand_as(question.points)))
