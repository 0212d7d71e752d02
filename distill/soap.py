"""SOAP for a single vector: Adam in the eigenbasis of the gradient's second moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .adam import BETAS, clipped, one_cycle, scaled_gradient
from .objective import Chunk
from .state import Problem, Stepped, TrainerState

EVERY = 5  # updates between two eigenbases: of 200 numbers one costs a fifth of an update of the embedded models
MOST = 1024  # numbers: an eigenbasis of so many takes half a second


def moments(size: int) -> Tensor:
    """(1 + 2P, P): the mean gradient m, its second moment M, and an orthonormal basis in columns, Q."""
    return torch.cat([torch.zeros(1 + size, size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)])


def basis_seconds(size: int) -> float:
    """Time that the eigenbasis of so many numbers takes here."""
    second = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    torch.linalg.eigh(second @ second.T)
    return time.perf_counter() - began


def update(
    problem: Problem, state: TrainerState, parts: int, part: Callable[[int], Iterable[Chunk]], exploring: bool
) -> Stepped:
    """One update: v -= lr Q (Q^T m) / sqrt(diag(Q^T M Q)), m and M running means of g and g g^T, Q M's eigenbasis.

    The numbers of a table pull on each other (a weight and the noise level where its slope is taken): the gradient's
    coordinates say little, its directions much. A table has so few numbers that M is kept whole, so the second moment
    in a new basis is exact. Reference: arXiv 2409.11321, Algorithm 3, for one side of a matrix with a single column.
    """
    config, size = problem.config, len(state.vector)
    row, scale = scaled_gradient(problem, state, parts, part)
    grad, loss = row[:-1], float(row[-1])
    done = state.iteration - state.began
    mean, second, basis = state.moments[0], state.moments[1 : 1 + size], state.moments[1 + size :]
    grad = clipped(grad, float(second.trace()), done, config.clip)
    mean = BETAS[0] * mean + (1 - BETAS[0]) * grad
    second = BETAS[1] * second + (1 - BETAS[1]) * torch.outer(grad, grad)
    if not bool(second.isfinite().all()):
        raise FloatingPointError("the gradient's second moment is not finite: the step was too long")
    if done % EVERY == 0:
        basis = torch.linalg.eigh(second)[1]
    spread = ((second @ basis) * basis).sum(0).clamp_min(0) / (1 - BETAS[1] ** (done + 1))
    direction = basis @ (basis.T @ mean / (1 - BETAS[0] ** (done + 1)) / (spread.sqrt() + 1e-8))
    length = config.screening if exploring else problem.iterations
    vector = state.vector - one_cycle(done / length, config.lr) * direction
    kept = torch.cat([mean[None], second, basis])
    return Stepped(vector, state.damping, kept, loss, True, scale)
