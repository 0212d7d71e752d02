"""Where along the noise levels a model's ODE bends: a solver's first grid is dense there."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model, coefficient_device
from ..solvers.registry import MULTISTEP, Ends, RuleSettings, make_rule
from ..solvers.schedules import logsnr
from ..solvers.solve import trajectory
from .teacher import POOL_SEEDS

SAMPLES, STEPS = 8, 40  # of a look at a model: 648 rows of its network
NUMBERS = 2**17  # in all samples together: fewer of them where they are large
ROUNDING = 1e-8  # of the largest state: what float32 makes of slopes that are the same
NEAR_ONE = 0.999  # of a flow, where its last odds are looked at


@dataclass(frozen=True)
class Bends:
    """How much of the slope is news, from one noise level to the next.

    Args:
        levels: (L+1,) float64, decreasing, from a model's first noise level to its last.
        slopes: (L+1, n) of some samples at these levels, one row of all their numbers.
        noise, end: (B, *S) of these samples, where they begin and end.
    """

    levels: Tensor
    slopes: Tensor
    noise: Tensor
    end: Tensor

    @functools.cached_property
    def news(self) -> Tensor:
        """(L,), what the noise and the slope before do not foretell of a slope, times the interval's length in sigma.

        Foretold is the best linear combination, the same for all samples and numbers, as a table's is. A state's error
        from holding on to it through the interval is this much, root mean square.
        """
        out = []
        for before, slope in zip(self.slopes, self.slopes[1:], strict=False):
            basis = torch.stack([self.slopes[0], before], 1)  # the first slope is very nearly the noise itself
            foretold = basis @ torch.linalg.lstsq(basis, slope[:, None], driver="gelsd").solution
            out.append((slope - foretold[:, 0]).square().mean().sqrt())
        return torch.stack(out) * (self.levels[:-1] - self.levels[1:])

    @property
    def astray(self) -> float:
        """Relative error of the analytic slope at the first noise level, which takes the noise itself for the slope.

        It is what the network knows there, the data's mean over sigma: next to nothing on a variance-exploding path,
        much on a flow path, and more where a prompt and guidance tell what comes.
        """
        return float((self.slopes[0] - self.noise.flatten().cpu().double()).square().mean().sqrt())

    def grid(self, count: int, power: float = 0.5) -> Tensor:
        """(count,) noise levels inside, decreasing: each stands in the middle of an equal share of news^power.

        Steps of equal error have power 1 / 2, as that of a first-order step grows with the square of its length; less
        spreads them further. Reference: de Boor 1973, "Good approximation by splines with variable knots"; a schedule
        from the curvature of trajectories is arXiv 2405.11326.
        """
        rounding = ROUNDING * self.slopes.square().mean().sqrt() * self.levels[0]
        density = (self.news + rounding) ** power  # a straight model's levels are even in log sigma
        share = torch.cat([density.new_zeros(1), density.cumsum(0) / density.sum()])
        middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        right = torch.searchsorted(share, middles).clamp(1, len(share) - 1)
        part = (middles - share[right - 1]) / (share[right] - share[right - 1])
        log = self.levels.log()
        return (log[right - 1] + part * (log[right] - log[right - 1])).exp()


def bends_of(model: Model, ends: Ends, dtype: torch.dtype = torch.float32) -> Bends:
    """A look at a model along a few of its training trajectories, solved with a multistep rule in 40 small steps.

    Args:
        ends: of the noise levels.
    """
    levels = _levels(ends)
    count = max(1, min(SAMPLES, NUMBERS // math.prod(model.shape)))
    seeds = list(range(POOL_SEEDS, POOL_SEEDS + count))
    denoiser, slopes = model.for_seeds(seeds), []
    rule = make_rule(MULTISTEP, RuleSettings(num_steps=STEPS))
    end = noise = unit_noise(seeds, model.shape, dtype, model.device)
    with torch.no_grad():
        for end, sigma in zip(trajectory(rule, denoiser, noise, levels), levels, strict=True):
            level = sigma.to(coefficient_device(model.device))
            denoised = denoiser(end, level.expand(len(end)))
            slopes.append((end - denoised).flatten().cpu().double() / sigma)
    return Bends(levels, torch.stack(slopes), noise, end)


def _levels(ends: Ends) -> Tensor:
    """Even in log sigma; on a flow path in the log odds sigma / (1 - sigma), the same ratio of noise to data."""
    low, high = ends.sigma_min, ends.sigma_max
    if ends.path == "ve":
        return logsnr(STEPS, low, high)
    inside = min(high, NEAR_ONE)
    odds = logsnr(STEPS, low / (1 - low), inside / (1 - inside))
    levels = odds / (1 + odds)
    levels[0], levels[-1] = high, low
    return levels
