"""What passes between a run and its optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..runs.processes import Workers
from .config import ResolvedConfig
from .objective import Residual
from .parameters import Parameters


@dataclass(frozen=True)
class State:
    """Everything that a run needs to go on, bit for bit; noise and batches follow from the seed and the iteration.

    Args:
        iteration: updates done, over all starts; the present start began after `began` of them.
        start: index of the plan's table that the present numbers began from.
        vector: (P,) present numbers.
        best: (P,) the best on held-out noise so far, with its RMSE `best_rmse` and its start `best_start`.
        stale: measurements since the best.
        damping: of Gauss-Newton.
        moments: (2, P) of Adam.
    """

    iteration: int
    began: int
    start: int
    vector: Tensor
    best: Tensor
    best_rmse: float
    best_start: int
    stale: int
    damping: float
    moments: Tensor


@dataclass(frozen=True)
class Stepped:
    """What an optimiser made of a state: the loss is the batch's mean square residual before the step."""

    vector: Tensor
    damping: float
    moments: Tensor
    loss: float
    accepted: bool


class Problem(Protocol):
    """What an optimiser works on: it sees no more of the trainer."""

    config: ResolvedConfig
    residual: Residual
    workers: Workers
    iterations: int

    def parameters(self, state: State) -> Parameters:
        """What the state's vector stands for."""
        ...
