"""How near finished samples are to the converged end of their ODE: the score that no reward can hack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model, coefficient_device
from ..distill.teacher import block_size
from ..solvers.exact import converged
from .task import Rollout

KEPT = 2**24  # numbers of end points that are kept in main memory
Pairs = tuple[tuple[int, int], ...]


class Closeness:
    """Minus the root mean square distance of each state to the converged end point from the same noise.

    Args:
        model: whose ODE it is.
        tolerance: of the end points, see `converged`; a float32 state supports about 1e-5.
    """

    name = "closeness"

    def __init__(self, model: Model, tolerance: float) -> None:
        self.model, self.tolerance = model, tolerance
        # Block by block: an end point depends a little on what it is solved with, and a run that goes on with nothing
        # kept has to find the same ones.
        self._ends: dict[Pairs, Tensor] = {}

    @torch.no_grad()
    def __call__(self, rollout: Rollout) -> Tensor:
        """(B,) float64."""
        pairs = list(zip(rollout.draws.conditions, rollout.draws.noises, strict=True))
        different = tuple(dict.fromkeys(pairs))  # a group shares one
        size, states = block_size(math.prod(self.model.shape)), rollout.states
        blocks = [different[at : at + size] for at in range(0, len(different), size)]
        ends = torch.cat([self._end(block, states.dtype) for block in blocks])
        row = {pair: i for i, pair in enumerate(different)}
        distance = states.detach().cpu().double() - ends[[row[pair] for pair in pairs]]
        return -distance.flatten(1).square().mean(1).sqrt()

    def _end(self, pairs: Pairs, dtype: torch.dtype) -> Tensor:
        if pairs not in self._ends:
            conditions, noises = zip(*pairs, strict=True)
            self._ends[pairs] = self._solved(conditions, noises, dtype)
            kept = max(1, KEPT // self._ends[pairs][0].numel())
            while len(self._ends) > 1 and sum(map(len, self._ends)) > kept:
                del self._ends[next(iter(self._ends))]
        return self._ends[pairs]

    def _solved(self, conditions: Sequence[int], noises: Sequence[int], dtype: torch.dtype) -> Tensor:
        """In float64; the model is asked in the states' dtype, as an exact one would be slow otherwise."""
        home, device = coefficient_device(self.model.device), self.model.device
        noise = unit_noise(noises, self.model.shape, torch.float64, str(home))
        levels = torch.tensor([self.model.sigma_max, self.model.sigma_min], dtype=torch.float64)
        bound = self.model.for_seeds(conditions)

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return bound(x.to(dtype).to(device), sigma).to(home).to(x.dtype)

        return converged(denoiser, noise, levels, self.tolerance, self.tolerance)[-1].cpu()
