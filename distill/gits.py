"""GITS: the schedule of N steps whose Euler steps err least along a teacher's trajectories, by dynamic programming."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model
from ..solvers.answers import batched
from ..solvers.registry import ADAMS, USUAL, Ends, make_sigmas, most_accurate
from ..solvers.solve import trajectory
from ..solvers.walk import Answer, Ask
from .teacher import POOL_SEEDS

FINE = 60  # steps of the teacher, whose levels a schedule is chosen from
TRAJECTORIES = 64  # all are close to one plane, and bend at the same places
NUMBERS = 2**20  # in all samples together: fewer of them where they are large
LATER = (1.0, 1.15)  # the plain sum of errors, and the paper's weight


@dataclass(frozen=True)
class Gits:
    """What a jump from one noise level to another costs, and the schedules that cost least.

    Args:
        levels: (T+1,) float64, decreasing: the teacher's.
        costs: (T+1, T+1), row to column; infinite where the column is not behind the row.
        evaluations: network evaluations that it took, of all trajectories together.
    """

    levels: Tensor
    costs: Tensor
    evaluations: int = 0

    def schedule(self, num_steps: int, later: float = 1.0) -> Tensor:
        """(N+1,) levels from the first to the last of the least V, V_k(i) = min_j costs[i, j] + later V_{k-1}(j).

        Reference: arXiv 2405.11326, Algorithm 1.

        Args:
            num_steps: N, at most T.
            later: weight of what follows a step against the step; from 1 on, 1.15 in the paper: an error here is
                carried on by all that follows, the sum of local errors knows nothing of that.

        Raises:
            ValueError: for more steps than the teacher took, or a weight that isn't positive.
        """
        last = len(self.levels) - 1
        if not 1 <= num_steps <= last:
            raise ValueError(f"num_steps = {num_steps}: a schedule among the teacher's levels has 1 to {last} steps")
        if not 0 < later < math.inf:
            raise ValueError(f"later = {later} must be positive; 1 is the sum of errors, 1.15 the paper's")
        value, jumps = self.costs[:, last], []
        for _ in range(num_steps - 1):
            value, jump = (self.costs + later * value).min(1)
            jumps.append(jump)
        path = [0]
        for jump in reversed(jumps):
            path.append(int(jump[path[-1]]))
        return self.levels[[*path, last]]

    def cost(self, sigmas: Tensor) -> float:
        """Sum of the costs of a schedule's jumps; its sigmas are among the levels."""
        places = [int((self.levels == sigma).nonzero()) for sigma in sigmas]
        return float(sum(self.costs[i, j] for i, j in zip(places, places[1:], strict=False)))


def gits_of(
    model: Model, ends: Ends, dtype: torch.dtype = torch.float32, samples: int = TRAJECTORIES, fine: int = FINE
) -> Gits:
    r"""costs[i, j] = mean |x_i + (sigma_j - sigma_i) d(x_i, sigma_i) - x_j| over a teacher's trajectories x.

    The teacher is iPNDM of fourth order on the usual grid of a path, and asks for each slope once: samples * fine
    evaluations, nothing is trained. Reference: arXiv 2405.11326, Section 4.2, with the Euclidean distance; the teacher,
    its grid and 60 levels are the paper's for the EDM grid, samples are a quarter of its 256.

    Args:
        ends: of the noise levels.
        samples: trajectories of training noise; fewer where a sample is large.
        fine: T, of the teacher.
    """
    levels = make_sigmas(USUAL[ends.path], fine, ends)
    count = max(1, min(samples, NUMBERS // math.prod(model.shape)))
    seeds = list(range(POOL_SEEDS, POOL_SEEDS + count))
    noise, slopes = unit_noise(seeds, model.shape, dtype, model.device), []
    with torch.no_grad():
        walked = trajectory(
            most_accurate(ADAMS), model.for_seeds(seeds), noise, levels, answer=partial(_heard, slopes)
        )
        states = torch.stack([x.flatten(1).cpu() for x in walked])
    return Gits(levels, _costs(levels, states, torch.stack(slopes)), count * fine)


def _heard(slopes: list[Tensor], denoiser: Denoiser) -> Answer:
    """An answer that keeps what it says."""
    answer = batched(denoiser)

    def heard(ask: Ask) -> Tensor:
        said = answer(ask)
        slopes.append(said[0].flatten(1).cpu())
        return said

    return heard


def _costs(levels: Tensor, states: Tensor, slopes: Tensor) -> Tensor:
    """(T+1, T+1) of states (T+1, B, n) and the slopes (T, B, n) at all of them but the last."""
    costs = torch.full((len(levels), len(levels)), math.inf, dtype=torch.float64)
    for i, slope in enumerate(slopes):
        strides = (levels[i + 1 :] - levels[i]).to(states.dtype)[:, None, None]
        errors = strides * slope - (states[i + 1 :] - states[i])
        costs[i, i + 1 :] = errors.norm(dim=2).double().mean(1)
    return costs
