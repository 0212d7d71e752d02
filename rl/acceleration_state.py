"""What learning to accelerate is at an update, and what it yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .conservative import Interval, Verdict


@dataclass(frozen=True)
class Measured:
    """What a policy came to on held-out samples.

    Args:
        means: of every score, and of the quality.
        calls: mean K of the samples, a sparse call counting as much as it costs.
        least, most: of the samples' calls.
        earned: mean reward with its discount.
    """

    means: Mapping[str, float]
    calls: float
    least: float
    most: float
    earned: float


@dataclass(frozen=True)
class Passing:
    """A policy that earned more than the plain solver on held-out samples beyond doubt: when, by how much, and what."""

    iteration: int
    interval: Interval
    measured: Measured


@dataclass(frozen=True)
class AccelerationState:
    """Everything that a run needs to go on, bit for bit; prompts, noise and decisions follow from seed and iteration.

    Args:
        iteration: updates done.
        vector: (V,) the heads' parameters.
        moments: (2, V) of Adam, and its `steps`.
        given: (S, N) held-out scores of the plain solver, in the order of the task's.
        looks: tests so far.
        best: (V,) parameters of the best that passed its test; those of the start while `passed` is None.
        judge: (3, W) parameters and Adam's moments of the discriminator, and its `judge_steps`; W = 0 without one.
    """

    iteration: int
    vector: Tensor
    moments: Tensor
    steps: int
    given: Tensor
    looks: int
    best: Tensor
    judge: Tensor
    judge_steps: int = 0
    passed: Passing | None = None


@dataclass(frozen=True)
class Tested:
    """A test: of the policy, of the plain solver, and the interval of what the former earns more."""

    policy: Measured
    plain: Measured
    interval: Interval
    verdict: Verdict


@dataclass(frozen=True)
class AccelerationUpdate:
    """One update.

    Args:
        iteration: updates done; of `total`.
        scalars: by TensorBoard tag.
        tested: where the policy was tested.
        state: to resume from.
        seconds: of this update.
    """

    iteration: int
    total: int
    scalars: Mapping[str, float]
    tested: Tested | None
    state: AccelerationState
    seconds: float
