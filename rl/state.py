"""What a refinement is at an update, and what it yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..solvers.table import Table
from .conservative import Interval, Verdict


@dataclass(frozen=True)
class Passed:
    """A policy that was better than the given table on held-out samples beyond doubt.

    Args:
        iteration: updates after which it was tested.
        interval: of its gain, in standard deviations of the given table's reward.
        table: the same of its one mean table; none: that was not better beyond doubt, as may be with a context.
    """

    iteration: int
    interval: Interval
    table: Interval | None


@dataclass(frozen=True)
class RefineState:
    """Everything that a run needs to go on, bit for bit; prompts, noise and tables follow from seed and iteration.

    Args:
        iteration: updates done, of `total`.
        vector: (V,) the policy's parameters.
        moments: (2, V) of Adam, and its `steps`.
        kl: the present coefficient.
        given: (S, N) the given table's held-out scores, in the order of the task's; zeros where one is not measured.
        recent: mean rewards of the last prompts that sampled tables were tried on, at most as many as an update has
            samples: for safe exploration, whose bounds are those of independent numbers.
        looks: tests so far.
        best: (V,) parameters of the best that passed its test; those of the start while `passed` is None.
        start: place of the table that the policy is around among `start_tables`; 0 is the given one.
    """

    iteration: int
    total: int
    vector: Tensor
    moments: Tensor
    steps: int
    kl: float
    given: Tensor
    recent: Tensor
    looks: int
    best: Tensor
    start: int = 0
    passed: Passed | None = None


@dataclass(frozen=True)
class Evaluation:
    """A test of the mean table on held-out samples.

    Args:
        means, given: every score's mean over the samples that were measured, of this table and of the given one.
        interval: of the gain, in standard deviations of the given table's reward, valid at every look.
        table: that was tested; with a context, that of the mean context.
        pictures: (B, C, H, W) of the first held-out samples, where states are pictures.
    """

    means: Mapping[str, float]
    given: Mapping[str, float]
    interval: Interval
    verdict: Verdict
    table: Table
    pictures: Tensor | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Update:
    """One update of the policy.

    Args:
        iteration: updates done; of `total`.
        scalars: by TensorBoard tag: rewards, losses, divergences.
        evaluation: where the mean table was tested.
        state: to resume from.
        seconds: of this update.
    """

    iteration: int
    total: int
    scalars: Mapping[str, float]
    evaluation: Evaluation | None
    state: RefineState
    seconds: float
