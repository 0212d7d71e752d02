"""Solving: a walk whose questions are answered by a denoiser."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..denoisers.protocol import Denoiser, coefficient_device, expand
from .answers import MakeAnswer, batched
from .schedules import checked_sigmas
from .walk import History, Rule, Steps, drive, walk


def trajectory(
    rule: Rule,
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor | ArrayLike,
    detach: bool = False,
    answer: MakeAnswer = batched,
    check: bool = True,
) -> Iterator[Tensor]:
    """The N + 1 states x_0 = noise * sigmas[0], ..., x_N, one by one, each (B, *S) in the dtype of the noise.

    x_{n+1} = x_n + (sigma_{n+1} - sigma_n) * mean slope, see `walk`.

    Args:
        noise: unit variance, (B, *S).
        sigmas: (N+1,), or (N+1, B) when each sample has its own, decreasing. Numbers that lie on an accelerator or
            require gradients are taken as they are; all others are checked.
        detach: each step starts from a detached state and history, so that gradients stay within a step.
        answer: `batched` (a question is one network call), `serial` (one call for each of its points), `streams`,
            `sharded(group)` or `auto()`: the same states to rounding.
        check: at the end read one number for each step back from the device and raise where a state is not finite;
            without it nothing here waits for the device.

    Raises:
        ValueError: for sigmas that do not decrease or are those of another number of samples, or a denoiser that
            changes the shape; for noise of integers.
        TypeError: for what is no rule or no answer.
        FloatingPointError: at the end, when a state is not finite, naming the first step after which it was not.
    """
    for name, value, remedy in (("rule", rule, "epd.rules.euler() or table.rule()"), ("answer", answer, "epd.auto()")):
        if not callable(value):
            raise TypeError(f"{name} is of type {type(value).__name__}: give one such as {remedy}")
    if not noise.is_floating_point():
        raise ValueError(f"noise of {noise.dtype} must be of floating point, such as epd.unit_noise draws")
    levels = checked_sigmas(sigmas).to(coefficient_device(noise.device))
    if levels.ndim == 2 and levels.shape[1:] != noise.shape[:1]:
        raise ValueError(
            f"sigmas of shape {tuple(levels.shape)} are those of {levels.shape[1]} samples, but noise of shape "
            f"{tuple(noise.shape)} is {len(noise)} samples: give one column for each sample, or one row for all"
        )
    x = noise * expand(levels[0], noise)
    yield x
    totals, wide = [], torch.promote_types(x.dtype, torch.float32)
    asking = walk(_forgetful(rule) if detach else rule, x, levels)
    for state in drive(asking, answer(denoiser), detach):
        if check:  # a sum is finite when all of x is
            totals.append(state.x.sum(dtype=wide))
        yield state.x
    if check:
        _require_finite(totals, levels)


def solve(
    rule: Rule,
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor | ArrayLike,
    answer: MakeAnswer = batched,
    check: bool = True,
) -> Tensor:
    """The last state of `trajectory`: x at sigmas[-1], (B, *S). Arguments and errors are those of `trajectory`."""
    states = trajectory(rule, denoiser, noise, sigmas, answer=answer, check=check)
    (last,) = collections.deque(states, maxlen=1)
    return last


def _forgetful(rule: Rule) -> Rule:
    """The rule with every step's history detached from its gradients."""

    def detached(value: object) -> object:  # a history is the rule's own: tensors, tuples of them, or neither
        if isinstance(value, tuple):
            return tuple(map(detached, value))
        return value.detach() if isinstance(value, Tensor) else value

    def forgetting(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        return rule(x, sigma, sigma_next, n, tuple(map(detached, history)))

    return forgetting


def _require_finite(totals: list[Tensor], levels: Tensor) -> None:
    # One read for the whole trajectory: a check per step would stall a GPU at every step.
    flags = [math.isfinite(total) for total in torch.stack(totals).tolist()]
    if not all(flags):
        n = flags.index(False)
        here, there = (float(level.max()) for level in levels[n : n + 2])
        if there == 0:
            raise FloatingPointError(
                f"the state is not finite after step {n} (sigma {here:.6g} -> 0): this rule asks for a "
                "slope at sigma 0, where there is none; end on a positive sigma, or use euler, ipndm or dpmpp"
            )
        raise FloatingPointError(
            f"the state is not finite after step {n} (sigma {here:.6g} -> {there:.6g}): "
            "the denoiser returned NaN or infinity there; in half precision try bfloat16 or float32 for the network"
        )
