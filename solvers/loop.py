"""The one loop: a rule asks for slopes, somebody answers, every step is x += (sigma' - sigma) * mean_slope."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..denoisers.protocol import Denoiser
from .schedules import given

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """ "The slopes at these K points, please": independent of each other, so one batched network call.

    Args:
        points: (K, B, *S).
        sigma: (K,), or (K, B) when each sample has its own table: where the slope is defined (the divisor), float64.
        sigma_scale: like sigma: the network is told sigma * sigma_scale; None is 1.
    """

    points: Tensor
    sigma: Tensor
    sigma_scale: Tensor | None = None

    @property
    def told(self) -> Tensor:
        """The noise levels that the network is told."""
        return self.sigma if self.sigma_scale is None else self.sigma * self.sigma_scale


# A rule's answer to "which mean slope over [sigma, sigma']?": it yields what it must know and returns
# (mean slope, history for the next step). The history is the rule's own; nobody else looks inside.
History = tuple[Any, ...]
Steps = Generator[Ask, Tensor, tuple[Tensor, History]]
Rule = Callable[[Tensor, Tensor, Tensor, int, History], Steps]


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, 0-d or one per sample (B,), ready to multiply x (B, *S) without changing its dtype."""
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """dx/dsigma = (x - D(x, sigma)) / sigma, for x (B, *S), on every path."""
    return slopes(denoiser, Ask(x[None], torch.as_tensor(sigma, dtype=torch.float64)[None]))[0]


def slopes(denoiser: Denoiser, ask: Ask) -> Tensor:
    """Answers an Ask with one call of K x B rows, sample-major (row = b K + k): slopes (K, B, *S).

    Raises:
        ValueError: when the denoiser returns another shape than it was given.
    """
    k, b = ask.points.shape[:2]
    rows = ask.points.transpose(0, 1).flatten(0, 1)
    told = ask.told
    denoised = denoiser(rows, told.expand(b, k).flatten() if told.ndim == 1 else told.T.flatten())
    if denoised.shape != rows.shape:
        raise ValueError(
            f"the denoiser returned shape {tuple(denoised.shape)} for a state of shape {tuple(rows.shape)}: "
            "it must return E[x0 | x] of the same shape (drop learned-variance channels in its adapter)"
        )
    away = ask.points - denoised.reshape(b, k, *denoised.shape[1:]).transpose(0, 1)
    return away / ask.sigma.to(away).reshape(k, -1, *[1] * (away.ndim - 2))


def drive(asking: Generator[Ask, Tensor, T], answer: Callable[[Ask], Tensor]) -> T:
    """Runs a rule's generator to its return value, answering everything that it asks."""
    try:
        ask = next(asking)
        while True:
            ask = asking.send(answer(ask))
    except StopIteration as stop:
        return stop.value


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


def plan(rule: Rule, sigmas: Tensor | ArrayLike) -> list[list[Ask]]:
    """Per step, what the rule will ask for: a dry run on a state of zeros (the sigmas asked for do not depend on x)."""
    levels = given(sigmas)
    x = torch.zeros(1, 1, dtype=torch.float64)
    history: History = ()
    asks: list[list[Ask]] = []
    for n in range(len(levels) - 1):
        asks.append([])

        def answer(ask: Ask, step: list[Ask] = asks[-1]) -> Tensor:
            step.append(ask)
            return torch.zeros_like(ask.points)

        _, history = drive(rule(x, levels[n], levels[n + 1], n, history), answer)
    return asks
