"""Weighted sums of slopes: element by element going forward, a few operations going back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..denoisers.protocol import expand


class _WeightedSum(torch.autograd.Function):
    """The sum of `combine` with a gradient of a few operations, where autograd's own takes six for each term.

    Training goes through dozens of sums of small tensors: what they cost is how many operations they are.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, used: Sequence[int], *terms: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weights, *terms)
        ctx.used = tuple(used)
        return _weighted_sum(weights.unbind(), used, terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *terms = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        where = _index(ctx.used, weights.device)  # type: ignore[attr-defined]
        each = torch.stack(terms).flatten(1 if weights.ndim == 1 else 2)  # (K, B d), or (K, B, d)
        if weights.ndim == 1:
            products = each @ gradient.flatten()
        else:
            products = (each * gradient.flatten(1)).sum(2)
        pulled = torch.zeros_like(weights).index_copy_(0, where, products.to(weights))
        column = weights.index_select(0, where).to(gradient)
        column = column.reshape(*column.shape, *[1] * (gradient.ndim + 1 - column.ndim))
        return pulled, None, *(column * gradient).unbind()


@functools.lru_cache(maxsize=4096)
def _index(used: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(used, device=device)


def _weighted_sum(columns: Sequence[Tensor], used: Sequence[int], terms: Sequence[Tensor]) -> Tensor:
    total = expand(columns[used[0]], terms[0]) * terms[0]
    for k, term in zip(used[1:], terms[1:], strict=True):
        total = total + expand(columns[k], term) * term
    return total


def combine(
    weights: Tensor, terms: Sequence[Tensor], used: Sequence[int], columns: Sequence[Tensor] | None = None
) -> Tensor:
    """sum_k weights[k] terms[k] over the used k; element by element, so that a sample's bits ignore its batch.

    Args:
        weights: (T,), or (T, B) when each sample has its own.
        terms: T of (B, *S).
        used: indices into both.
        columns: the weights one by one, where they are at hand.
    """
    inside = [terms[k] for k in used]
    if weights.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _WeightedSum.apply(weights, used, *inside))
    return _weighted_sum(columns or weights.unbind(), used, inside)
