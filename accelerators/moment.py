"""Which network call this is: told alike by every driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """One network call of a trajectory.

    A call has copies x samples x K rows: the copies (guidance) one after another, sample-major inside of each: row
    (c samples + b) K + k is point `slots[k]` of sample b.

    Args:
        step, steps: solver step n of N, from 0.
        ask: question of the step, from 0. A step that begins with an analytic slope has its fan as question 0.
        slots: its points in this call, K of them; one each where they are evaluated one after another.
        branch: network calls that this question took before: Wan makes two, with and without the prompt.
        copies: rows of the call / (samples x K): 2 where guidance doubles the call.
        samples: B, what the solver moves. In a pipeline both are read off its latents until its first answer of a run.
        sigma: (K,) noise levels where the slopes are defined.
        state: whether the first point is the solver's own state, which what is kept from step to step should follow;
            the others are points of a fan.
    """

    step: int
    steps: int
    ask: int
    slots: tuple[int, ...]
    branch: int
    copies: int
    samples: int
    sigma: tuple[float, ...]
    state: bool

    @property
    def points(self) -> int:
        """K."""
        return len(self.slots)

    @property
    def rows(self) -> int:
        """Of the network call."""
        return self.copies * self.samples * self.points

    @property
    def first(self) -> bool:
        """Of the first step: nothing is kept from before."""
        return self.step == 0

    @property
    def last(self) -> bool:
        """Of the last step."""
        return self.step == self.steps - 1


@dataclass(frozen=True)
class Work:
    """What of a call is computed.

    Args:
        rows: which of its samples x K rows, (R,) indices b K + k on any device, the same in all copies; None: all.
        tokens: share of the tokens of these rows, their mean.
        blocks: share of the blocks that these tokens go through; more than 1 where blocks are repeated.
    """

    rows: Tensor | Sequence[int] | None = None
    tokens: float = 1.0
    blocks: float = 1.0


ALL = Work()
