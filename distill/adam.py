"""Adam through the trajectory, one-cycle rate, clipped gradients: for per-step objectives and half precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .objective import Chunk, steps_loss
from .parameters import Parameters
from .state import Problem, State, Stepped

BETAS = (0.9, 0.99)
WARM = 0.15  # share of the updates that the learning rate rises


def one_cycle(fraction: float, peak: float) -> float:
    """Cosine up from peak / 25 over the first WARM, cosine down to almost nothing. Reference: arXiv 1708.07120."""
    if fraction < WARM:
        return peak * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * fraction / WARM)) / 2)
    return peak * (1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (fraction - WARM) / (1 - WARM))) / 2)


def update(problem: Problem, state: State, parts: int, part: Callable[[int], Chunk], exploring: bool) -> Stepped:
    """One Adam update; the parts' gradients are averaged before they are clipped. Reference: arXiv 1412.6980.

    A gradient's norm is clipped to `config.clip` times its running root mean square, which Adam knows anyway: a batch
    that holds a sample between two modes has a gradient of 50 times the usual one, and would both set the step's
    direction and, by the second moment, hold up the next hundred updates.
    """
    config, parameters = problem.config, problem.parameters(state)

    def gradient(i: int) -> Tensor:
        vector = state.vector.clone().requires_grad_()
        loss = part_loss(problem, parameters, vector, part(i))
        loss.backward()
        assert vector.grad is not None
        return torch.cat([vector.grad, loss.detach().cpu().reshape(1)])

    row = problem.workers.mean(parts, len(state.vector) + 1, gradient)
    grad, loss = row[:-1], float(row[-1])
    done = state.iteration - state.began
    usual = math.sqrt(float(state.moments[1].sum()) / (1 - BETAS[1] ** done)) if done else 0.0
    if usual > 0:
        grad = grad * min(1.0, config.clip * usual / max(float(grad.norm()), usual))
    first = BETAS[0] * state.moments[0] + (1 - BETAS[0]) * grad
    second = BETAS[1] * state.moments[1] + (1 - BETAS[1]) * grad**2
    unbiased = first / (1 - BETAS[0] ** (done + 1)), second / (1 - BETAS[1] ** (done + 1))
    lr = one_cycle(done / (config.screening if exploring else problem.iterations), config.lr)
    vector = state.vector - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return Stepped(vector, state.damping, torch.stack([first, second]), loss, True)


def part_loss(problem: Problem, parameters: Parameters, vector: Tensor, chunk: Chunk) -> Tensor:
    """The configured objective on one part, float64."""
    c = parameters.coefficients(vector)
    loss = torch.zeros((), dtype=torch.float64)
    if problem.config.objective in ("end", "both"):
        loss = loss + problem.residual(c, chunk.denoiser, chunk).square().mean().cpu()
    if problem.config.objective in ("steps", "both"):
        loss = loss + steps_loss(c, chunk).cpu()
    return loss
