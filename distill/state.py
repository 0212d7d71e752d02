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
class TrainerState:
    """Everything that a run needs to go on, bit for bit; noise and batches follow from the seed and the iteration.

    Args:
        iteration: updates done, over all starts; the present start began after `began` of them.
        start: index of the plan's table that the present numbers began from.
        vector: (P,) present numbers.
        best: (P,) the best on held-out noise so far, with its RMSE `best_rmse` and its start `best_start`.
        stale: measurements since the best.
        damping: of Gauss-Newton.
        moments: of SOAP or Adam, see their `moments`.
        scale: of their losses, a power of two.
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
    scale: float = 1.0


@dataclass(frozen=True)
class Stepped:
    """What an optimiser made of a state: the loss is the batch's mean square residual before the step.

    Where a number is not finite, the optimiser raises FloatingPointError instead.
    """

    vector: Tensor
    damping: float
    moments: Tensor
    loss: float
    accepted: bool
    scale: float


class Problem(Protocol):
    """What an optimiser works on: it sees no more of the trainer."""

    @property
    def config(self) -> ResolvedConfig: ...

    @property
    def residual(self) -> Residual: ...

    @property
    def workers(self) -> Workers: ...

    @property
    def iterations(self) -> int:
        """Updates after screening."""
        ...

    def parameters(self, state: TrainerState) -> Parameters:
        """What the state's vector stands for."""
        ...
