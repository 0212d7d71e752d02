"""How a question is answered by a denoiser: its K points in one network call, one after another, or side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..denoisers.protocol import Denoiser, beside, coefficient_device, denoised_at
from .questions import announced
from .walk import Answer, Ask

MakeAnswer: TypeAlias = Callable[[Denoiser], Answer]


def slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """dx/dsigma = (x - D(x, sigma)) / sigma (B, *S), for x (B, *S) and sigma > 0, 0-d or (B,), on every path."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=coefficient_device(x.device))
    return batched(denoiser)(Ask(x[None], sigma[None]))[0]


def batched(denoiser: Denoiser) -> Answer:
    """An `Answer` that evaluates a question in one network call of K x B rows, sample-major (row = b K + k).

    Raises:
        ValueError: by the answer, when the denoiser returns another shape than that of its rows.
    """

    return lambda ask: _evaluated(denoiser, ask, tuple(range(ask.points.shape[0])))


def serial(denoiser: Denoiser) -> Answer:
    """An `Answer` that makes one network call of B rows for each of the K points: the same slopes with less memory.

    Raises:
        ValueError: by the answer, when the denoiser returns another shape than that of its rows.
    """

    def answer(ask: Ask) -> Tensor:
        return torch.cat([_evaluated(denoiser, ask, (k,)) for k in range(len(ask.points))])

    return answer


def streams(denoiser: Denoiser) -> Answer:
    """An `Answer` that makes one call of B rows for each of the K points, each on a CUDA stream of its own.

    For networks whose calls cannot have more rows: the device overlaps the calls as far as it has room. The first
    question of a shape is answered serially, because what a denoiser keeps from its first call is used by all streams.

    Raises:
        ValueError: by the answer, for points on another kind of device.
    """
    lanes: list[torch.cuda.Stream] = []
    seen: set[torch.Size] = set()
    first = serial(denoiser)

    def answer(ask: Ask) -> Tensor:
        device = ask.points.device
        if device.type != "cuda":
            raise ValueError(f"the points lie on {device.type}, streams are those of a CUDA device: answer=batched")
        if ask.points.shape[1:] not in seen:
            seen.add(ask.points.shape[1:])
            return first(ask)
        lanes.extend(torch.cuda.Stream(device) for _ in range(len(ask.points) - len(lanes)))
        here, slopes = torch.cuda.current_stream(device), []
        for k, lane in zip(range(len(ask.points)), lanes, strict=False):
            lane.wait_stream(here)
            with torch.cuda.stream(lane):
                slopes.append(_evaluated(denoiser, ask, (k,)))
        # Both waits together make it safe that memory goes back to the stream that it is from.
        for lane in lanes[: len(ask.points)]:
            here.wait_stream(lane)
        return torch.cat(slopes)

    return answer


def _evaluated(denoiser: Denoiser, ask: Ask, slots: tuple[int, ...]) -> Tensor:
    """The slopes at these points of a question, (K, B, *S), by one call of K x B rows, sample-major."""
    points, sigma, told, factor = ask.points, ask.sigma, ask.network_sigma, ask.guidance
    if len(slots) < points.shape[0]:  # a slice of all would cost an operation going back, too
        some = slice(slots[0], slots[-1] + 1)
        points, sigma, told, factor = points[some], sigma[some], told[some], None if factor is None else factor[some]
    k, b = points.shape[:2]
    with announced(ask, slots) as asked:
        if k == 1:  # half of all questions: nothing to lay out
            of_row = None if factor is None else factor[0].expand(b)
            denoised = _denoised(denoiser, points[0], told[0].expand(b), of_row)[None]
        else:
            rows = points.transpose(0, 1).flatten(0, 1)
            of_rows = None if factor is None else _of_rows(factor, b)
            denoised = _denoised(denoiser, rows, _of_rows(told, b), of_rows)
            denoised = denoised.reshape(b, k, *denoised.shape[1:]).transpose(0, 1)
    away, divisor = points - denoised, beside(sigma, points)
    if k > 1 or sigma.ndim > 1:  # one level divides everything as it is
        divisor = divisor.reshape(k, -1, *[1] * (away.ndim - 2))
    return asked.settled(away / divisor)


def _of_rows(values: Tensor, samples: int) -> Tensor:
    """(B x K,) sample-major, of (K,) or (K, B)."""
    return (values.expand(samples, len(values)) if values.ndim == 1 else values.T).flatten()


def _denoised(denoiser: Denoiser, rows: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
    """D at these rows, checked.

    Raises:
        ValueError: when the denoiser returns another shape than that of its rows, or has no guidance to scale.
    """
    denoised = denoised_at(denoiser, rows, sigma, factor)
    if denoised.shape != rows.shape:
        raise ValueError(
            f"the denoiser returned shape {tuple(denoised.shape)} for a state of shape {tuple(rows.shape)}: "
            "it must return E[x0 | x] of the same shape (drop learned-variance channels in its adapter)"
        )
    return denoised
