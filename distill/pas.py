"""PAS: a hand-made solver's slopes, corrected by four learned coordinates in the steps where it helps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..solvers.corrected import SIZE, Slope, along, corrected, directions, pas
from ..solvers.registry import ADAMS, most_accurate
from ..solvers.schedules import finer
from ..solvers.solve import solve, trajectory
from ..solvers.walk import Rule
from .gits import FINE, NUMBERS
from .teacher import POOL_SEEDS

TRAJECTORIES = 64  # half of them learn the coordinates, the others decide whether these help
HELPS = 0.01  # of the mean squared error of a step's end: less is not worth four numbers


@dataclass(frozen=True)
class Truth:
    """What a teacher says of the states at the levels of a schedule.

    Args:
        sigmas: (N+1,).
        noise: (B, *S).
        states: (N+1, B, *S).
        seeds: whose noise and conditions.
        evaluations: that it took.
    """

    sigmas: Tensor
    noise: Tensor
    states: Tensor
    seeds: tuple[int, ...]
    evaluations: int


def truth_of(
    model: Model, sigmas: Tensor, dtype: torch.dtype = torch.float32, samples: int = TRAJECTORIES, fine: int = FINE
) -> Truth:
    """A teacher's states: iPNDM of fourth order, every step of the schedule in as many parts, `fine` or more in all."""
    count = max(2, min(samples, NUMBERS // math.prod(model.shape)))
    seeds = tuple(range(POOL_SEEDS, POOL_SEEDS + count))
    noise, parts = unit_noise(seeds, model.shape, dtype, model.device), math.ceil(fine / (len(sigmas) - 1))
    with torch.no_grad():
        walked = trajectory(most_accurate(ADAMS), model.for_seeds(seeds), noise, finer(sigmas, parts, model.path))
        states = torch.stack([x for n, x in enumerate(walked) if n % parts == 0])
    return Truth(sigmas, noise, states, seeds, count * parts * (len(sigmas) - 1))


@dataclass(frozen=True)
class Pas:
    """Learned coordinates.

    Args:
        coordinates: of each step, (K,); None where none help.
        evaluations: network evaluations that learning took, without the teacher's.
    """

    coordinates: tuple[Tensor | None, ...]
    evaluations: int

    @property
    def numbers(self) -> int:
        """How many numbers are learned."""
        return SIZE * sum(own is not None for own in self.coordinates)

    def rule(self, rule: Rule) -> Rule:
        """The solver that they were learned for, corrected."""
        return pas(rule, self.coordinates)


def pas_of(model: Model, rule: Rule, truth: Truth) -> Pas:
    """Coordinates c_n = argmin E |x_{n+1}(c) - x*_{n+1}|^2 for a rule, step after step from where the last one ends.

    The next state is affine in the slope and the directions are orthonormal, so that each coordinate is a mean. They
    are kept where they lower the error of other samples by one per cent. Reference: arXiv 2411.06503, Algorithm 1,
    which takes any distance and descends along its gradient, and keeps what lowers it by a tolerance.

    Args:
        rule: of one call a step, such as `euler()` or `ipndm()`.
        truth: of `truth_of`.
    """
    found: list[Tensor | None] = []
    half = len(truth.noise) // 2

    def learn(slope: Slope) -> Tensor:
        rest = slope.mean(torch.zeros_like(slope.value))
        share = slope.mean(slope.value) - rest
        weight = (share * slope.value).sum() / slope.value.square().sum()
        ideal = ((truth.states[slope.n + 1] - slope.x) / slope.stride - rest) / weight
        units = directions(slope.value, slope.seen)
        learning, lengths = units[:half], units[:half].square().sum(2).sum(0)  # as many as have this direction
        coordinates = (learning * ideal[:half].flatten(1)[:, None]).sum((0, 2)) / lengths.clamp(min=1)
        taken = along(coordinates, units, slope.value)
        before, after = ((other - ideal)[half:].square().mean() for other in (slope.value, taken))
        helps = bool(after < (1 - HELPS) * before)
        found.append(coordinates if helps else None)
        return taken if helps else slope.value

    with torch.no_grad():
        solve(corrected(rule, learn), model.for_seeds(truth.seeds), truth.noise, truth.sigmas)
    return Pas(tuple(found), len(truth.noise) * (len(truth.sigmas) - 1))
