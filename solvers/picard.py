"""ParaDiGMS: all steps of a window at once, again and again, until they no longer move."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..denoisers.protocol import Denoiser, Path, beside, coefficient_device
from .answers import batched
from .schedules import checked_sigmas
from .walk import Ask


def picard(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor | ArrayLike,
    window: int,
    tolerance: float = 0.0,
    most: int | None = None,
    path: Path = "ve",
) -> Tensor:
    r"""x at sigmas[-1] (B, *S) by Picard iteration in a sliding window. Reference: arXiv 2305.16317, Algorithm 1.

    x_j <- x_t + sum_{t <= i < j} (sigma_{i+1} - sigma_i) d(x_i, sigma_i) for all j of the window (t, t + p] together:
    one network call of p rows a sample. Then the window slides to the first point whose mean squared change exceeded
    tolerance^2 v_j, v_j = sigma_j^2 (1 - (s_j / s_{j-1})^2), s = sigma / alpha: the variance of DDPM's step to it. The
    first point of a window is exact, so that N calls are always enough, and where all points stand still they are
    Euler's.

    Every sample has a window of its own, so that it doesn't depend on its batch; a call has as many rows for each as
    the sample with the most left to do needs, and the slowest sample decides how many calls there are. What that is,
    whoever passes a counting denoiser sees. Not theirs: points that no window has reached are copies of the last one in
    the variance-preserving frame, where the paper works, and `most`, which ends where time does.

    Diffusers' parallel schedulers are the same iteration inside pipelines of their own, bound to training timesteps,
    and not driven here: they own a loop, where the others have a step.

    Args:
        noise: unit variance, (B, *S).
        sigmas: (N+1,), decreasing: the fine grid.
        window: p >= 1, steps at once; 1 is Euler one step after the other.
        tolerance: tau >= 0, of a number of the state, in units of the noise that DDPM would add there.
        most: network calls after which the last state is returned as it is; none: N are enough.
        path: `ve` or `flow`, whose alpha is 1 or 1 - sigma.

    Raises:
        ValueError: for sigmas that do not decrease, a window or `most` below 1, or a negative tolerance.
    """
    if window < 1 or tolerance < 0 or (most is not None and most < 1):
        raise ValueError(f"window = {window}, tolerance = {tolerance}, most = {most}: at least 1, 0 and 1")
    levels = checked_sigmas(sigmas).to(coefficient_device(noise.device))
    count, samples = len(levels) - 1, torch.arange(len(noise), device=levels.device)
    places = torch.arange(count + 1, device=levels.device)[:, None]
    frame = (1 + levels**2).sqrt() if path == "ve" else torch.ones_like(levels)
    allowed, answer = tolerance**2 * _variances(levels, path), batched(denoiser)
    states = noise * _spread(levels[0] * frame / frame[0], noise.ndim + 1, noise)  # (N+1, B, *S)
    begin = torch.zeros_like(samples)
    for _ in range(count if most is None else min(most, count)):
        width = min(window, count - int(begin.min()))
        steps = begin + places[:width]  # (p, B)
        inside = steps < count
        steps = steps.clamp(max=count - 1)
        slopes = answer(Ask(states[steps, samples], levels[steps]))
        moves = slopes * _spread(levels.diff()[steps], slopes.ndim, slopes)
        found = torch.cat([states[begin, samples][None], moves]).cumsum(0)[1:]
        change = (found - states[steps + 1, samples]).flatten(2).square().mean(2, dtype=torch.float64)
        moved = inside & (change.to(levels.device) > allowed[steps])
        states[steps[inside] + 1, samples.expand_as(steps)[inside]] = found[inside]
        end = (begin + width).clamp(max=count)
        copies = states[end, samples] * _spread(frame[:, None] / frame[end], states.ndim, states)
        states = torch.where(_spread(places > end, states.ndim), copies, states)
        begin = begin + torch.where(moved.any(0), moved.int().argmax(0) + 1, inside.sum(0))
        if int(begin.min()) == count:
            break
    return states[-1]


def _variances(levels: Tensor, path: Path) -> Tensor:
    """(N,) of what DDPM adds in the step to each level but the first, in our frame."""
    alpha = torch.ones_like(levels) if path == "ve" else 1 - levels
    return levels[1:] ** 2 * (1 - (levels[1:] * alpha[:-1] / (levels[:-1] * alpha[1:])) ** 2)


def _spread(values: Tensor, ndim: int, x: Tensor | None = None) -> Tensor:
    """Values of the first axes, ready to multiply something of `ndim` axes, in the dtype of x."""
    values = values if x is None else beside(values, x)
    return values.reshape(*values.shape, *[1] * (ndim - values.ndim))
