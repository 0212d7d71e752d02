"""How a question is answered by a denoiser: its K points in one network call, one after another, or side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from ..denoisers.protocol import Denoiser, beside, coefficient_device, denoised_at
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

    def answer(ask: Ask) -> Tensor:
        k, b = ask.points.shape[:2]
        if k == 1:  # half of all questions: nothing to lay out
            factor = None if ask.guidance is None else ask.guidance[0].expand(b)
            return _slopes(ask, _denoised(denoiser, ask.points[0], ask.network_sigma[0].expand(b), factor)[None])
        rows = ask.points.transpose(0, 1).flatten(0, 1)
        sigma, factor = (_of_rows(values, b) for values in (ask.network_sigma, ask.guidance))
        assert sigma is not None
        denoised = _denoised(denoiser, rows, sigma, factor)
        return _slopes(ask, denoised.reshape(b, k, *denoised.shape[1:]).transpose(0, 1))

    return answer


def serial(denoiser: Denoiser) -> Answer:
    """An `Answer` that makes one network call of B rows for each of the K points: the same slopes with less memory.

    Raises:
        ValueError: by the answer, when the denoiser returns another shape than that of its rows.
    """

    def answer(ask: Ask) -> Tensor:
        return _slopes(ask, torch.stack([_denoised(denoiser, *point) for point in _points(ask)]))

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
        here, denoised = torch.cuda.current_stream(device), []
        for point, lane in zip(_points(ask), lanes, strict=False):
            lane.wait_stream(here)
            with torch.cuda.stream(lane):
                denoised.append(_denoised(denoiser, *point))
        # Both waits together make it safe that memory goes back to the stream that it is from.
        for lane in lanes[: len(ask.points)]:
            here.wait_stream(lane)
        return _slopes(ask, torch.stack(denoised))

    return answer


def _of_rows(values: Tensor | None, samples: int) -> Tensor | None:
    """(B x K,) sample-major, of (K,) or (K, B)."""
    if values is None:
        return None
    return (values.expand(samples, len(values)) if values.ndim == 1 else values.T).flatten()


def _points(ask: Ask) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """State, noise levels and factors of the guidance of each point, one of each for every sample."""
    b = ask.points.shape[1]
    factors = [None] * len(ask.points) if ask.guidance is None else [factor.expand(b) for factor in ask.guidance]
    levels = [sigma.expand(b) for sigma in ask.network_sigma]
    return zip(ask.points, levels, factors, strict=True)


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


def _slopes(ask: Ask, denoised: Tensor) -> Tensor:
    """(x - D) / sigma, all (K, B, *S)."""
    away = ask.points - denoised
    return away / beside(ask.sigma, away).reshape(len(away), -1, *[1] * (away.ndim - 2))
