"""Schedules: functions of the number of steps whose value is a float64 tensor of N + 1 decreasing sigmas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..denoisers.protocol import Path, coefficient_device
from ..denoisers.timesteps import Timesteps

NO_SHIFT = "1 is none, SD3 uses 3"


def _ramp(num_steps: int) -> Tensor:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} is below 1: a schedule has at least one step")
    return torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"need 0 < sigma_min < sigma_max < inf, got sigma_min = {sigma_min}, sigma_max = {sigma_max}")


def _check_positive(name: str, value: float, usual: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} = {value} must be positive; {usual}")


def _pinned(sigmas: Tensor, first: float, last: float) -> Tensor:
    # Powers and logarithms round the ends; tables and teachers compare them exactly.
    sigmas = sigmas.clone()
    sigmas[0], sigmas[-1] = first, last
    return sigmas


def checked_sigmas(sigmas: Tensor | ArrayLike) -> Tensor:
    """Sigmas as float64, checked: (N+1,) or (N+1, B), finite, strictly decreasing, > 0 (the last may be 0).

    Numbers on an accelerator and those that require gradients are not read: that would wait for the device, and be
    done again for every update of a training.

    Raises:
        ValueError: naming the first offending index and both values.
    """
    if isinstance(sigmas, Tensor) and (sigmas.requires_grad or sigmas.device.type != "cpu"):
        return sigmas.to(coefficient_device(sigmas.device)).to(torch.float64)
    values = np.array(sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas, dtype=np.float64)
    if values.ndim not in (1, 2) or len(values) < 2 or values.size == 0:
        raise ValueError(f"sigmas must be one row of at least 2 numbers, got shape {values.shape}")
    for row in values[None].tolist() if values.ndim == 1 else values.T.tolist():
        _check_decreasing(row)
    return torch.from_numpy(values)


def _check_decreasing(row: list[float]) -> None:
    for i, value in enumerate(row):
        if not math.isfinite(value) or value < 0 or (value == 0 and i < len(row) - 1):
            raise ValueError(f"sigmas[{i}] = {value} must be finite and positive (only the last may be 0)")
        if i and value >= row[i - 1]:
            raise ValueError(f"sigmas must decrease: sigmas[{i - 1}] = {row[i - 1]}, sigmas[{i}] = {value}; sort them")


def polynomial(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's grid: (smax^(1/rho) + i/N (smin^(1/rho) - smax^(1/rho)))^rho. Reference: arXiv 2206.00364, Eq. 5.

    Args:
        num_steps: N >= 1; the result is (N+1,) float64, decreasing.
        sigma_min, sigma_max: 0 < sigma_min < sigma_max < inf, the last noise level and the first.
        rho: > 0; larger: smaller steps near the data.

    Raises:
        ValueError: for numbers out of these ranges.
    """
    _check_range(sigma_min, sigma_max)
    _check_positive("rho", rho, "7 is usual")
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _pinned((top + _ramp(num_steps) * (bottom - top)) ** rho, sigma_max, sigma_min)


def logsnr(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Uniform in log sigma: smax (smin / smax)^(i/N). Reference: DPM-Solver, arXiv 2206.00927, Section 3.4.

    Args:
        num_steps: N >= 1; the result is (N+1,) float64, decreasing.
        sigma_min, sigma_max: 0 < sigma_min < sigma_max < inf, the last noise level and the first.

    Raises:
        ValueError: for numbers out of these ranges.
    """
    _check_range(sigma_min, sigma_max)
    ends = math.log(sigma_max), math.log(sigma_min)
    return _pinned((ends[0] + _ramp(num_steps) * (ends[1] - ends[0])).exp(), sigma_max, sigma_min)


def time_uniform(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 1.0, epsilon: float = 1e-3
) -> Tensor:
    """Uniform in t^(1/rho) of the VP process whose sigma(epsilon) = sigma_min and sigma(1) = sigma_max.

    sigma(t) = sqrt(exp(bd t^2 / 2 + bm t) - 1). Reference: arXiv 2011.13456, Appendix B; EDM Table 1.

    Args:
        num_steps: N >= 1; the result is (N+1,) float64, decreasing.
        sigma_min, sigma_max: 0 < sigma_min < sigma_max < inf, the last noise level and the first.
        rho: > 0; 1 is uniform in t.
        epsilon: in (0, 1), the time of sigma_min.

    Raises:
        ValueError: for numbers out of these ranges.
    """
    _check_range(sigma_min, sigma_max)
    _check_positive("rho", rho, "1 is uniform in t")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon = {epsilon} must be inside (0, 1); 0.001 is usual")
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    bd = 2 * (low / epsilon - high) / (epsilon - 1)
    bm = high - bd / 2
    t = (1 + _ramp(num_steps) * (epsilon ** (1 / rho) - 1)) ** rho
    return _pinned(torch.expm1(bd * t**2 / 2 + bm * t).sqrt(), sigma_max, sigma_min)


def discrete(
    num_steps: int,
    alphas_cumprod: Tensor | Sequence[float],
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 1.0,
) -> Tensor:
    """Uniform (rho = 1) in the fractional timestep of a network that was trained on discrete ones.

    Reference: arXiv 2206.00927, Appendix; continuous timesteps by interpolating log alpha.

    Args:
        num_steps: N >= 1; the result is (N+1,) float64, decreasing.
        alphas_cumprod: (T,), strictly decreasing in (0, 1].
        sigma_min, sigma_max: 0 < sigma_min < sigma_max < inf; by default those of the first timestep and of the last.
        rho: > 0, the schedule is uniform in (t + 1)^(1/rho).

    Raises:
        ValueError: for numbers out of these ranges.
    """
    times = Timesteps(torch.as_tensor(alphas_cumprod, dtype=torch.float64))
    low = times.sigma_min if sigma_min is None else sigma_min
    high = times.sigma_max if sigma_max is None else sigma_max
    _check_range(low, high)
    _check_positive("rho", rho, "1 is uniform in the timestep")
    ends = torch.tensor([low, high], dtype=torch.float64)
    last, first = times.timestep(ends, extrapolate=True).tolist()
    # Measured from t = -1, so that rho acts on a positive time, as (index + 1) / T does.
    first, last = (first + 1) ** (1 / rho), (last + 1) ** (1 / rho)
    t = (first + _ramp(num_steps) * (last - first)) ** rho - 1
    return _pinned(times.sigma(t), high, low)


def flow_shift(
    num_steps: int, shift: float = 1.0, mu: float | None = None, sigma_min: float = 0.001, sigma_max: float = 1.0
) -> Tensor:
    """Rectified flow: s uniform, sigma = shift s / (1 + (shift - 1) s); with mu, shift = e^mu.

    Reference: SD3, arXiv 2403.03206, Eq. 23.

    Args:
        num_steps: N >= 1; the result is (N+1,) float64, decreasing.
        shift: > 0; 1 is none.
        mu: logarithm of the shift, in place of it.
        sigma_min, sigma_max: 0 < sigma_min < sigma_max <= 1, the ends of the ramp before it is shifted.

    Raises:
        ValueError: for numbers out of these ranges.
    """
    _check_range(sigma_min, sigma_max)
    if sigma_max > 1:
        raise ValueError(f"sigma_max = {sigma_max} is above 1: a flow path starts at sigma 1 at most")
    shift = math.exp(mu) if mu is not None else shift
    _check_positive("shift", shift, NO_SHIFT)
    s = sigma_max + _ramp(num_steps) * (sigma_min - sigma_max)
    return shift * s / (1 + (shift - 1) * s)


def flow_between(num_steps: int, sigma_min: float = 0.001, sigma_max: float = 1.0, shift: float = 1.0) -> Tensor:
    """`flow_shift` from sigma_max to sigma_min exactly: its ramp runs between the s whose shifted values these are.

    A shift moves the ends of a ramp, too; solvers that are compared, and a teacher and its students, must share theirs.

    Args:
        num_steps: N >= 1; the result is (N+1,) float64, decreasing.
        sigma_min, sigma_max: 0 < sigma_min < sigma_max <= 1, the last noise level and the first.
        shift: > 0; 1 is none.

    Raises:
        ValueError: for numbers out of these ranges.
    """
    _check_range(sigma_min, sigma_max)
    _check_positive("shift", shift, NO_SHIFT)
    low, high = (sigma / (shift - (shift - 1) * sigma) for sigma in (sigma_min, sigma_max))
    return _pinned(flow_shift(num_steps, shift, sigma_min=low, sigma_max=high), sigma_max, sigma_min)


def finer(sigmas: Tensor, parts: int, path: Path, rho: float = 7.0) -> Tensor:
    """(N parts + 1,) sigmas: every step in as many parts, even in sigma^(1/rho), or in sigma on a flow path.

    Args:
        sigmas: (N+1,) float64; they are among the result, to the bit.
        parts: 1 or more.
    """
    power = 1 / rho if path == "ve" else 1.0
    warped = sigmas**power
    inner = torch.linspace(0, 1, parts + 1, dtype=torch.float64)[:-1]
    fine = (warped[:-1, None] + (warped[1:] - warped[:-1])[:, None] * inner).flatten() ** (1 / power)
    fine[::parts] = sigmas[:-1]
    return checked_sigmas(torch.cat([fine, sigmas[-1:]]))
