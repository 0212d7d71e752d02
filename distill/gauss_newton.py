"""Gauss-Newton with a trust region for a few dozen numbers: forward evaluations only, no activation is ever kept.

A table has 10 to 200 parameters and every sample gives one residual per pixel, so the normal equations are tiny and
well determined. Each column of the Jacobian is a forward difference, a solve of its own; network calls that come
before the first one that a parameter can reach are replayed from the base run. Levenberg's damping makes every step
a descent step on its batch. Reference: Nocedal and Wright, Numerical Optimization, Section 10.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoisers.protocol import Denoiser, PassesGuidance, denoised_at
from ..solvers.parallel import Coefficients, parallel
from ..solvers.solve import solve
from ..solvers.walk import plan
from .objective import Chunk, Residual, mean_square
from .parameters import Parameters
from .state import Problem, Stepped, TrainerState

DAMPING = 1e-2  # relative to the diagonal: the first step is nearly a Gauss-Newton step
LEAST, MOST = 1e-6, 1e3
TRIALS = 6
STRETCH = 2**16  # residuals whose products are formed together
EPS = {"float32": 2e-3, "float64": 1e-6}  # forward differences: rounding against curvature


@dataclass
class RecordingDenoiser(PassesGuidance):
    """A denoiser that keeps what it returned, call by call."""

    denoiser: Denoiser
    calls: list[Tensor] = field(default_factory=list)

    def _denoised(self, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
        self.calls.append(denoised_at(self.denoiser, x, sigma, factor))
        return self.calls[-1]


@dataclass
class ReplayingDenoiser(PassesGuidance):
    """A denoiser that returns recorded results before call `first` and asks the network from there on."""

    denoiser: Denoiser
    recorded: Sequence[Tensor]
    first: int
    index: int = 0

    def _denoised(self, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
        self.index += 1
        if self.index <= self.first:
            return self.recorded[self.index - 1]
        return denoised_at(self.denoiser, x, sigma, factor)


@dataclass
class _Toy:
    """A denoiser of one number that keeps everything that it is asked, each call's inputs in one tensor."""

    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._denoised(x, sigma)

    def at_guidance(self, x: Tensor, sigma: Tensor, factor: Tensor) -> Tensor:
        return self._denoised(x, sigma, factor)

    def _denoised(self, x: Tensor, *told: Tensor) -> Tensor:
        self.seen.append(torch.cat([x.flatten(), *(value.flatten() for value in told)]))
        # Differs from call to call, so nothing cancels by chance.
        return torch.sin(x + (x.numel() + told[0].numel()) * len(self.seen))


@dataclass(frozen=True)
class Normal:
    """Normal equations of one batch: J^T J / R (P, P), J^T r / R (P,), |r|^2 / R, float64."""

    matrix: Tensor
    gradient: Tensor
    loss: Tensor

    def flat(self) -> Tensor:
        return torch.cat([self.matrix.flatten(), self.gradient, self.loss[None]])

    @classmethod
    def unflat(cls, flat: Tensor, size: int) -> Normal:
        return cls(flat[: size * size].reshape(size, size), flat[size * size : -1], flat[-1])


def first_reached(parameters: Parameters, theta: Tensor, eps: float) -> list[int]:
    """Per parameter, the first network call whose input it can change: found by dry runs on a toy state."""
    base = _dry(parameters.coefficients(theta))
    reached = []
    for k in range(len(theta)):
        moved = _dry(parameters.coefficients(_nudged(theta, k, eps)))
        same = [torch.equal(a, b) for a, b in zip(base, moved, strict=True)]
        reached.append(same.index(False) if False in same else len(base))
    return reached


def _dry(c: Coefficients) -> list[Tensor]:
    """Everything that is asked on a one-number state, each call's inputs in one tensor."""
    toy = _Toy()
    solve(parallel(c), toy, torch.full((1, 1), 0.37, dtype=torch.float64), c.sigmas)
    return toy.seen


def _nudged(theta: Tensor, k: int, eps: float) -> Tensor:
    out = theta.clone()
    out[k] += eps
    return out


def normal_equations(
    parameters: Parameters,
    theta: Tensor,
    chunks: Iterable[Chunk],
    residual: Residual,
    eps: float,
    reached: Sequence[int] | None = None,
) -> Normal:
    """J^T J, J^T r and |r|^2 of some chunks, as means over all their residuals.

    The products are sums over residuals, so only one chunk's Jacobian exists at a time.

    Args:
        theta: (P,) where to linearise.
        eps: step of the forward differences.
        reached: `first_reached` of the same, where it is known.
    """
    reached, size = first_reached(parameters, theta, eps) if reached is None else reached, len(theta)
    total, count = torch.zeros(size * size + size + 1, dtype=torch.float64), 0
    for chunk in chunks:
        columns, base = _jacobian(parameters, theta, chunk, residual, eps, reached)
        total += _products(columns, base)
        count += len(base)
    return Normal.unflat(total / count, size)


def _jacobian(
    parameters: Parameters, theta: Tensor, chunk: Chunk, residual: Residual, eps: float, reached: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The columns of one chunk's Jacobian (P, R), in main memory, and its residual (R,)."""
    recorder = RecordingDenoiser(chunk.denoiser)
    base = residual(parameters.coefficients(theta), recorder, chunk)
    columns = torch.empty(len(theta), len(base), dtype=torch.float64)
    for k, first in enumerate(reached):
        c = parameters.coefficients(_nudged(theta, k, eps))
        columns[k] = (residual(c, ReplayingDenoiser(chunk.denoiser, recorder.calls, first), chunk) - base) / eps
    return columns, base


def _products(columns: Tensor, base: Tensor) -> Tensor:
    """J^T J, J^T r and r^T r in one vector: summed over stretches of residuals, so that few are on the device."""
    size = len(columns)
    total = torch.zeros(size * size + size + 1, dtype=torch.float64)
    for j, r in zip(columns.split(STRETCH, 1), base.split(STRETCH), strict=True):
        j = j.to(r.device)
        total += torch.cat([(j @ j.T).flatten(), j @ r, (r @ r)[None]]).cpu()
    return total


def damped_step(normal: Normal, damping: float) -> Tensor:
    """delta of (J^T J + damping diag(J^T J)) delta = -J^T r."""
    diagonal = normal.matrix.diagonal()
    # Directions that change nothing (a shift that the sum-to-one undoes) have an empty row: a floor keeps them still.
    floor = 1e-10 + 1e-7 * diagonal.max()
    return torch.linalg.solve(normal.matrix + torch.diag(damping * diagonal + floor), -normal.gradient)


def update(
    problem: Problem, state: TrainerState, parts: int, part: Callable[[int], Iterable[Chunk]], exploring: bool
) -> Stepped:
    """One trust-region step from the batch's parts, accepted by as many others.

    A step fits its batch, noise included: a few samples between two modes have residuals and sensitivities that
    outweigh all others. What lowers the loss of other samples, too, is no such fit; else the damping grows. While
    exploring, the batch itself decides: its noise carries a start over what would hold it in a poor optimum.
    """
    eps, parameters, size = EPS[problem.config.dtype], problem.parameters(state), len(state.vector)

    def equations(i: int) -> Tensor:
        return normal_equations(parameters, state.vector, part(i), problem.residual, eps, reached).flat()

    def loss_at(vector: Tensor) -> float:
        c = parameters.coefficients(vector)

        def others(i: int) -> Tensor:
            return mean_square(problem.residual, c, part(i if exploring else parts + i))

        try:
            return float(problem.workers.mean(parts, 1, others))
        except FloatingPointError:  # a step so long that the trajectory overflows is a step to refuse
            return math.inf

    with torch.no_grad():
        reached = first_reached(parameters, state.vector, eps)
        normal = Normal.unflat(problem.workers.mean(parts, size * size + size + 1, equations), size)
        if not bool(normal.flat().isfinite().all()):
            raise FloatingPointError("the normal equations are not finite: a trajectory near the present one overflows")
        before, damping = loss_at(state.vector), state.damping
        for trial in range(TRIALS):
            moved = state.vector + damped_step(normal, damping)
            if loss_at(moved) < before:
                kept = max(damping / 5, LEAST) if trial == 0 else damping
                return Stepped(moved, kept, state.moments, float(normal.loss), True, state.scale)
            damping *= 4
    return Stepped(state.vector, min(damping, MOST), state.moments, float(normal.loss), False, state.scale)


def evaluations(parameters: Parameters, eps: float = EPS["float32"]) -> int:
    """Network evaluations per sample of one update, for cost estimates: the Jacobian and one trial."""
    theta = parameters.start
    c = parameters.coefficients(theta)
    rows = [len(ask.points) for step in plan(parallel(c), c.sigmas) for ask in step]
    return 2 * sum(rows) + sum(sum(rows[first:]) for first in first_reached(parameters, theta, eps))
