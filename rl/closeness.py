"""How near finished samples are to the converged end of their ODE: the score that no reward can hack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..solvers.exact import converged
from .task import Rollout

KEPT = 2**24  # numbers of end points that are kept in main memory


class Closeness:
    """Minus the root mean square distance of each state to the converged end point from the same noise.

    Args:
        model: whose ODE it is.
        tolerance: of the end points, see `converged`.
    """

    name = "closeness"

    def __init__(self, model: Model, tolerance: float) -> None:
        self.model, self.tolerance = model, tolerance
        self._ends: dict[tuple[int, int], Tensor] = {}

    def __call__(self, rollout: Rollout) -> Tensor:
        states = rollout.states.detach().double().cpu()
        distance = states - self._end(list(zip(rollout.draws.conditions, rollout.draws.noises, strict=True)))
        return -distance.flatten(1).square().mean(1).sqrt()

    def _end(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._ends]  # a group shares one
        if missing:
            conditions, noises = zip(*missing, strict=True)
            noise = unit_noise(noises, self.model.shape, torch.float64, self.model.device)
            levels = torch.tensor([self.model.sigma_max, self.model.sigma_min], dtype=torch.float64)
            bound, dtype = self.model.for_seeds(conditions), torch.float32
            end = converged(
                lambda x, sigma: bound(x.to(dtype), sigma).to(x.dtype), noise, levels, self.tolerance, self.tolerance
            )[-1]
            self._ends.update(zip(missing, end.cpu(), strict=True))
        found = torch.stack([self._ends[pair] for pair in pairs])
        for oldest in [*self._ends][: max(0, len(self._ends) - KEPT // found[0].numel())]:
            del self._ends[oldest]
        return found
