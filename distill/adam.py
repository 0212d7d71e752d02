"""Adam through the trajectory, one-cycle rate, clipped gradients: for per-step objectives and half precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .objective import Chunk, steps_loss
from .parameters import Parameters
from .state import Problem, Stepped, TrainerState

BETAS = (0.9, 0.99)
WARM = 0.15  # share of the updates that the learning rate rises
LARGEST_SCALE = 2.0**40  # of losses; gradients of float32 networks stay far from its limit
GROWTH = 200  # updates after which a larger scale is tried


def one_cycle(fraction: float, peak: float) -> float:
    """Cosine up from peak / 25 over the first WARM, cosine down to almost nothing. Reference: arXiv 1708.07120."""
    if fraction < WARM:
        return peak * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * fraction / WARM)) / 2)
    return peak * (1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (fraction - WARM) / (1 - WARM))) / 2)


def update(
    problem: Problem, state: TrainerState, parts: int, part: Callable[[int], Iterable[Chunk]], exploring: bool
) -> Stepped:
    """One Adam update; the parts' gradients are averaged before they are clipped. Reference: arXiv 1412.6980."""
    config = problem.config
    row, scale = scaled_gradient(problem, state, parts, part)
    grad, loss = row[:-1], float(row[-1])
    done = state.iteration - state.began
    grad = clipped(grad, float(state.moments[1].sum()), done, config.clip)
    first = BETAS[0] * state.moments[0] + (1 - BETAS[0]) * grad
    second = BETAS[1] * state.moments[1] + (1 - BETAS[1]) * grad**2
    unbiased = first / (1 - BETAS[0] ** (done + 1)), second / (1 - BETAS[1] ** (done + 1))
    lr = one_cycle(done / (config.screening if exploring else problem.iterations), config.lr)
    vector = state.vector - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return Stepped(vector, state.damping, torch.stack([first, second]), loss, True, scale)


def clipped(grad: Tensor, square: float, done: int, most: float) -> Tensor:
    """The gradient, its norm at most `most` times its running root mean square, which the optimiser knows anyway.

    A batch that holds a sample between two modes has a gradient of 50 times the usual one, and would both set the
    step's direction and, by the second moment, hold up the next hundred updates.

    Args:
        square: running mean of the squared norm, after `done` updates, without bias correction.
    """
    usual = math.sqrt(square / (1 - BETAS[1] ** done)) if done else 0.0
    return grad * min(1.0, most * usual / max(float(grad.norm()), usual)) if usual > 0 else grad


def moments(size: int) -> Tensor:
    """(2, P): the running means of the gradient and of its square."""
    return torch.zeros(2, size, dtype=torch.float64)


def first_scale(numbers: int) -> float:
    """The power of two that makes a mean over this many numbers about their sum."""
    return min(2.0 ** math.ceil(math.log2(numbers)), LARGEST_SCALE)


def scaled_gradient(
    problem: Problem, state: TrainerState, parts: int, part: Callable[[int], Iterable[Chunk]]
) -> tuple[Tensor, float]:
    """The parts' mean gradient and loss in one row (P + 1,), and the loss scale at which the gradient was finite.

    Half precision has no number below 6e-8, and the gradient of a mean over the numbers of a picture is smaller from
    512 x 512 pixels on: all of it would become 0. So losses are multiplied by a power of two and gradients divided by
    it, which changes no bit in other precisions. Where that overflows, the same batch is asked again at half the scale.
    Reference: arXiv 1710.03740, Section 3.2.

    Raises:
        FloatingPointError: for a loss that is not finite, or a gradient that is not at any scale.
    """

    parameters, samples = problem.parameters(state), problem.config.batch // problem.config.accumulate

    def of_part(scale: float, i: int) -> Tensor:
        vector, total = state.vector.clone().requires_grad_(), torch.zeros(1, dtype=torch.float64)
        for chunk in part(i):  # the activations of one are gone before those of the next are there
            loss = part_loss(problem, parameters, vector, chunk) * (len(chunk.noise) / samples)
            (loss * scale).backward()
            total = total + loss.detach().cpu()
        assert vector.grad is not None
        return torch.cat([vector.grad / scale, total])

    done = state.iteration - state.began
    scale = min(2 * state.scale, LARGEST_SCALE) if done and done % GROWTH == 0 else state.scale
    while True:
        row = problem.workers.mean(parts, len(state.vector) + 1, functools.partial(of_part, scale))
        if bool(row.isfinite().all()):
            return row, scale
        if not bool(row[-1].isfinite()) or scale <= 1:
            what = "gradient" if bool(row[-1].isfinite()) else "loss"
            raise FloatingPointError(f"the {what} of a batch is not finite: lower lr = {problem.config.lr:g}")
        scale /= 2


def part_loss(problem: Problem, parameters: Parameters, vector: Tensor, chunk: Chunk) -> Tensor:
    """The configured objective on one part, float64."""
    c = parameters.coefficients(vector)
    loss = torch.zeros((), dtype=torch.float64)
    if problem.config.objective in ("end", "both"):
        loss = loss + problem.residual(c, chunk.denoiser, chunk).square().mean().cpu()
    if problem.config.objective in ("steps", "both"):
        loss = loss + steps_loss(c, chunk).cpu()
    return loss
