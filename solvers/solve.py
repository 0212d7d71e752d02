"""Solving: a walk whose questions are answered by a denoiser."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..denoisers.protocol import Denoiser
from .answers import slopes
from .schedules import given
from .walk import History, Rule, drive, expand


def trajectory(
    rule: Rule, denoiser: Denoiser, noise: Tensor, sigmas: Tensor | ArrayLike, detach: bool = False
) -> Iterator[Tensor]:
    """The N + 1 states x_0 = noise * sigmas[0], ..., x_N, one by one, each (B, *S) in the dtype of the noise.

    x_{n+1} = x_n + (sigma_{n+1} - sigma_n) * rule(...). Reference: arXiv 2206.00364, Eq. 1 with sigma as time.

    Args:
        noise: unit variance, (B, *S).
        sigmas: (N+1,), decreasing; a tensor that requires gradients is differentiated through.
        detach: each step starts from a detached state and history, so that gradients stay within a step.

    Raises:
        ValueError: for sigmas that do not decrease, or a denoiser that changes the shape.
        FloatingPointError: at the end, when a state is not finite, naming the first step after which it was not.
    """
    levels = sigmas if isinstance(sigmas, Tensor) and sigmas.requires_grad else given(sigmas)
    each, strides = levels.unbind(), levels.diff(dim=0).unbind()
    x = noise * expand(each[0], noise)
    history: History = ()
    sums = []
    yield x
    for n, stride in enumerate(strides):
        step = rule(x, each[n], each[n + 1], n, history)
        mean_slope, history = drive(step, lambda ask: slopes(denoiser, ask))
        x = x + expand(stride, x) * mean_slope
        sums.append(x.sum(dtype=torch.float64))  # finite when all of x is
        yield x
        if detach:
            x, history = x.detach(), _detached(history)
    if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        _require_finite(sums, levels)


def _detached(value: Any) -> Any:  # noqa: ANN401 - a history is the rule's own: tensors, tuples of them, or neither
    if isinstance(value, tuple):
        return tuple(map(_detached, value))
    return value.detach() if isinstance(value, Tensor) else value


def _require_finite(sums: list[Tensor], levels: Tensor) -> None:
    # One read for the whole trajectory: a check per step would stall a GPU at every step.
    flags = [math.isfinite(total) for total in torch.stack(sums).tolist()]
    if not all(flags):
        n = flags.index(False)
        if float(levels[n + 1]) == 0:
            raise FloatingPointError(
                f"the state is not finite after step {n} (sigma {float(levels[n]):.6g} -> 0): this rule asks for a "
                "slope at sigma 0, where there is none; end on a positive sigma, or use euler, ipndm or dpmpp"
            )
        raise FloatingPointError(
            f"the state is not finite after step {n} (sigma {float(levels[n]):.6g} -> {float(levels[n + 1]):.6g}): "
            "the denoiser returned NaN or infinity there; in half precision try bfloat16 or float32 for the network"
        )


def solve(rule: Rule, denoiser: Denoiser, noise: Tensor, sigmas: Tensor | ArrayLike) -> Tensor:
    """The last state of `trajectory`: x at sigmas[-1], (B, *S)."""
    (last,) = collections.deque(trajectory(rule, denoiser, noise, sigmas), maxlen=1)
    return last
