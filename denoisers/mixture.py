"""Gaussian mixtures: the exact denoiser, for truth in tests and for benchmarks without a network's error."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .fingerprint import Dependencies
from .protocol import Path, beside, rows_per_condition, unguided


def _column(values: Tensor | Sequence[float] | float, count: int, name: str) -> Tensor:
    column = torch.as_tensor(values, dtype=torch.float64)
    column = column.expand(count) if column.ndim == 0 else column
    if column.shape != (count,) or not bool((torch.isfinite(column) & (column > 0)).all()):
        raise ValueError(f"{name} must be {count} positive finite numbers (one per mean) or one for all, got {values}")
    return column


class _CommonWidth(torch.autograd.Function):
    r"""The denoiser of components of one variance V, and its gradient by four products in all.

    v = alpha^2 V + sigma^2;  rows = [alpha / v x, -alpha^2 / (2 v)];  g = softmax(rows keys^T + offset);
    D = sigma^2 / v (g means) + alpha V / v x.

    This is the benchmark model's whole cost: (B, M) is large, autograd's own way through the softmax passes over it six
    times more, and its way through the scalars is fifty small operations a call.

    Args:
        x: (B, d).
        sigma: (B, 1) float64.
        keys: (M, d + 1), the means and their squared norms.
        values: (M, d + 1), the means and a column of ones, so that the sum of the weights is within the product.
        offset: (M,) or (B, M) log-weights; None where they are all equal.
        variance: V.
        path: `ve`: alpha = 1; `flow`: alpha = 1 - sigma.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        sigma: Tensor,
        keys: Tensor,
        values: Tensor,
        offset: Tensor | None,
        variance: float,
        path: Path,
    ) -> Tensor:
        alpha = 1 - sigma if path == "flow" else torch.ones_like(sigma)
        spread = alpha**2 * variance + sigma**2
        # sigma^2 / v = 1 - alpha gain, without the cancellation at small sigma.
        scale, pull, gain = alpha / spread, (sigma**2 / spread).to(x.dtype), (alpha * variance / spread).to(x.dtype)
        rows = torch.cat([x * scale.to(x.dtype), (alpha * scale / -2).to(x.dtype)], 1)
        logits = rows @ keys.T
        if offset is not None:
            logits.add_(offset)
        # Clamped, as arithmetic with denormals is many times slower on some processors. At the square root of the
        # smallest normal number nothing is lost, the largest weight being 1, and products with a gradient stay normal.
        floor = math.log(torch.finfo(logits.dtype).tiny) / 2
        weight = logits.sub_(logits.amax(1, keepdim=True)).clamp_min_(floor).exp_()
        sums = weight @ values
        total = sums[:, -1:]
        mean = sums[:, :-1] / total
        ctx.save_for_backward(x, weight, total, mean, keys, values, sigma, alpha, spread, scale, pull, gain)
        ctx.variance, ctx.path = variance, path
        return mean * pull + gain * x

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, total, mean, keys, values, *scalars = ctx.saved_tensors  # type: ignore[attr-defined]
        sigma, alpha, spread, scale, pull, gain = scalars
        (gradient,) = gradients
        along_mean = (gradient * mean).sum(1, keepdim=True)
        centred = torch.cat([gradient * pull, along_mean * -pull], 1)
        pulled = (centred @ values.T).mul_(weight)
        to_rows, to_last = (pulled @ keys / total).split([x.shape[1], 1], 1)
        to_x = gradient * gain + to_rows * scale.to(x.dtype)
        if not ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            return to_x, *[None] * 6
        moved = -1.0 if ctx.path == "flow" else 0.0  # type: ignore[attr-defined] - of alpha with sigma
        variance = ctx.variance  # type: ignore[attr-defined]
        scale_moved = (moved - scale * 2 * (sigma + alpha * variance * moved)) / spread
        gain_moved = variance * scale_moved
        to_sigma = (gradient * x).sum(1, keepdim=True) * gain_moved
        to_sigma -= along_mean * (gain * moved + alpha * gain_moved)
        to_sigma += (to_rows * x).sum(1, keepdim=True) * scale_moved
        to_sigma -= to_last * (scale * moved + alpha * scale_moved) / 2
        return to_x, to_sigma, *[None] * 5


class GaussianMixture:
    r"""Exact posterior mean of x0 ~ sum_k w_k N(mu_k, s_k^2 I), for x = alpha x0 + sigma eps.

    v_k = alpha^2 s_k^2 + sigma^2;  g_k = softmax_k(log w_k - |x - alpha mu_k|^2 / (2 v_k) - d/2 log v_k);
    D(x, sigma) = sum_k g_k (mu_k + alpha s_k^2 / v_k (x - alpha mu_k)), alpha = 1 (`ve`) or 1 - sigma (`flow`).

    It computes in the dtype of x; constants are kept in float64.

    Args:
        means: (M, *S).
        stds: (M,) or one number, > 0; in the units of the data.
        weights: (M,) or one number, > 0; normalised here.
        path: `ve` or `flow`.
        labels: (M,) class of each component; `bind` then conditions on a class.
        sigma_min, sigma_max: the range that trainers and comparisons use; by default up to 80 (`ve`) or 1 (`flow`).
        name: what tables record as the model that they were learned for.

    Raises:
        ValueError: for shapes, signs or an unknown path, naming the value.
    """

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | Sequence[float] | float,
        weights: Tensor | Sequence[float] | float = 1.0,
        path: Path = "ve",
        labels: Tensor | None = None,
        sigma_min: float = 0.002,
        sigma_max: float | None = None,
        name: str = "mixture",
    ) -> None:
        if path not in ("ve", "flow"):
            raise ValueError(f"path = {path!r} is unknown: give 've' or 'flow'")
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim < 2 or not len(means) or not bool(torch.isfinite(means).all()):
            raise ValueError(f"means must be finite with shape (M, *S), got shape {tuple(means.shape)}")
        self.name, self.guidance, self.device = name, 1.0, "cpu"
        self.path: Path = path
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max if sigma_max is not None else (80.0 if path == "ve" else 1.0)
        self.shape = tuple(means.shape[1:])
        self.means = means.flatten(1)  # (M, d)
        self.variances = _column(stds, len(means), "stds") ** 2
        weights = _column(weights, len(means), "weights")
        self.log_weights = (weights / weights.sum()).log()  # (M,)
        if labels is not None and labels.shape != (len(means),):
            raise ValueError(f"labels must have shape ({len(means)},), one per mean, got {tuple(labels.shape)}")
        self.labels = labels
        self.alphas_cumprod: Tensor | None = None
        # With one common width |x|^2 and log v cancel in the softmax: leaving them out is faster and more accurate.
        self._common = bool((self.variances == self.variances[0]).all())
        self._uniform = bool((self.log_weights == self.log_weights[0]).all())
        self._condition: Tensor | None = None  # (B, M) log-weights, -inf outside the class
        self._cache: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def bind(self, labels: Tensor | Sequence[int], guidance: float = 1.0) -> GaussianMixture:
        """This mixture conditioned row by row: D = D_u + guidance (D_c - D_u), D_c over the label's components.

        Args:
            labels: (B,) classes; a call then has B rows, or B x K rows sample-major.
            guidance: 1 is plain conditioning.

        Raises:
            ValueError: for a mixture without labels, or a class that no component has.
        """
        if self.labels is None:
            raise ValueError("this mixture has no classes to bind: give labels= when it is made")
        classes = torch.as_tensor(labels)
        inside = self.labels[None] == classes[:, None]
        if not bool(inside.any(1).all()):
            raise ValueError(
                f"labels {classes.tolist()} hold a class that no component has: {self.labels.unique().tolist()}"
            )
        bound = copy.copy(self)
        bound.guidance = float(guidance)
        bound._condition = self.log_weights.masked_fill(~inside, -math.inf)
        bound._cache = {}
        return bound

    def for_seeds(self, seeds: Sequence[int]) -> GaussianMixture:
        """The mixture itself: a seed stands for no condition here."""
        return self

    def depends_on(self) -> Dependencies:
        """The mixture's constants and the classes bound to it."""
        rows = {"means": self.means, "variances": self.variances, "log_weights": self.log_weights}
        bound = {} if self._condition is None else {"bound": self._condition}
        return Dependencies(rows={**rows, **bound}, settings={"path": self.path, "guidance": self.guidance})

    def decode(self, x: Tensor) -> Tensor:
        """Pictures in [0, 1] of states in [-1, 1]."""
        return (x / 2 + 0.5).clamp(0, 1)

    def constants(self, x: Tensor) -> tuple[Tensor, ...]:
        """Means (M, d), their squared norms (M,) and what else a call needs, in the dtype and on the device of x."""
        key = (x.dtype, x.device)
        if key not in self._cache:
            condition = self.log_weights[:0] if self._condition is None else self._condition
            norms = self.means.square().sum(1)
            wide = torch.cat([self.means, norms[:, None]], 1)
            values = torch.nn.functional.pad(self.means, (0, 1), value=1.0)
            parts = (self.means, norms, self.variances, self.log_weights, condition, wide, values)
            self._cache[key] = tuple(p.to(device=x.device, dtype=x.dtype) for p in parts)
        return self._cache[key]

    def at_guidance(self, x: Tensor, sigma: Tensor, factor: Tensor) -> Tensor:
        """D with the bound guidance scale times `factor`, 0-d or (B,).

        Raises:
            ValueError: where no guidance is bound.
        """
        if self._condition is None or self.guidance == 1.0:
            raise unguided(self.name)
        return self._denoised(x, sigma, beside(self.guidance * factor, x).reshape(-1, 1))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._denoised(x, sigma, self.guidance)

    def _denoised(self, x: Tensor, sigma: Tensor, guidance: float | Tensor) -> Tensor:
        flat = x.flatten(1)
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).reshape(-1, 1)
        mean = self._of_one_width(flat, sigma) if self._common else self._of_any_width(flat, sigma)
        _, _, _, log_weights, condition, _, _ = self.constants(x)
        free = None if self._uniform else log_weights
        if self._condition is None:
            return mean(free).reshape(x.shape)
        repeat = rows_per_condition(len(x), len(condition))
        denoised = mean(condition.repeat_interleave(repeat, 0))
        if self.guidance != 1.0:
            unbound = mean(free)
            denoised = unbound + guidance * (denoised - unbound)
        return denoised.reshape(x.shape)

    def _of_one_width(self, x: Tensor, sigma: Tensor) -> Callable[[Tensor | None], Tensor]:
        """D as a function of log-weights, for x (B, d) and sigma (B or 1, 1)."""
        keys, values = self.constants(x)[-2:]
        sigma, variance = sigma.expand(len(x), 1), float(self.variances[0])
        return lambda offset: cast(Tensor, _CommonWidth.apply(x, sigma, keys, values, offset, variance, self.path))

    def _of_any_width(self, x: Tensor, sigma: Tensor) -> Callable[[Tensor | None], Tensor]:
        means, norms, variances, *_ = self.constants(x)
        # Where sigma^2 is tiny against alpha^2 s^2 nothing cancels, so float64 scalars may be rounded to x's dtype.
        alpha = (torch.ones_like(sigma) if self.path == "ve" else 1 - sigma).to(x.dtype)
        sigma = sigma.to(x.dtype)
        spread = alpha**2 * variances + sigma**2  # (B or 1, M)
        gain = alpha * variances / spread
        pull = sigma**2 / spread  # = 1 - alpha gain, without the cancellation at small sigma
        distance = alpha**2 * norms - 2 * alpha * (x @ means.T) + x.square().sum(1, keepdim=True)
        rows = -distance / (2 * spread) - x.shape[1] / 2 * spread.log()

        def mean(offset: Tensor | None) -> Tensor:
            share = (rows if offset is None else rows + offset).softmax(1)  # (B, M)
            return (share * pull) @ means + (share * gain).sum(1, keepdim=True) * x

        return mean
