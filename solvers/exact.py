"""The converged solution of the probability-flow ODE, by two independent adaptive integrators."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..denoisers.protocol import Denoiser
from .schedules import checked_sigmas

MAX_STEPS = 5000  # between two sigmas of the result; 1e-12 on a mixture of 1,800 sharp components takes some 500
FIRST_STEP = 0.05  # in log sigma
LARGEST_STEP = 0.5  # the quiet stretch at large sigma would let steps grow until they jump over where the data appear
Field = Callable[[Tensor, Tensor], Tensor]


def converged(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor | ArrayLike, rtol: float = 1e-7, atol: float = 1e-7
) -> Tensor:
    r"""States (T+1, B, *S) at `sigmas` of dx/dsigma = (x - D) / sigma from x = noise * sigmas[0], the first included.

    Integrated as y = x / q, q^2 = 1 + sigma^2, over tau = -log sigma, where dy/dtau = D / q - y / q^2 is of unit size
    from one end to the other on both paths. Always in float64; the result has the dtype of the noise.

    The step is chosen so that the *worst* sample meets the tolerance, so a sample depends on its batch by no more than
    its own error: about 10 times the tolerance where the flow is regular, more for the rare sample that starts on the
    ridge between two modes. Reference: Dormand and Prince 1980, through torchdiffeq.

    Args:
        noise: unit variance, (B, *S).
        sigmas: (T+1,), decreasing, > 0: the noise levels of the returned states; two numbers give start and end.
        rtol, atol: tolerance of one step, of y (unit size), root mean square over a sample; a float32 network
            supports about 1e-5.

    Raises:
        ValueError: for sigmas that do not decrease to something above 0.
        FloatingPointError: when the denoiser returns NaN or infinity, naming the sigma, or is too rough to converge.
    """
    from torchdiffeq import odeint

    levels = _positive(sigmas).to(noise.device)
    tau = -levels.log()
    # Steps end on these sigmas, the last too: interpolants are of lower order, and no network is asked below it.
    options = {
        "norm": _worst_sample,
        "step_t": tau[1:],
        "first_step": FIRST_STEP,  # its own guess may probe far beyond the last sigma
        "max_step": LARGEST_STEP,
        "max_num_steps": MAX_STEPS,
    }
    start = _scaled_start(noise, levels)
    try:
        states = odeint(_field(denoiser), start, tau, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:  # how torchdiffeq says that no step is small enough
        raise FloatingPointError(
            f"rtol = {rtol}, atol = {atol} cannot be met ({error}): the denoiser is not that smooth; a float32 network "
            "supports about 1e-5, a half precision one about 1e-2"
        ) from error
    return _unscaled(cast(Tensor, states), levels).to(noise.dtype)


def cross_check(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor | ArrayLike, rtol: float = 1e-11, atol: float = 1e-11
) -> Tensor:
    """What `converged` returns, by SciPy's DOP853 (order 8) on plain x over tau = -log sigma: slow, for proof.

    Arguments and errors are those of `converged`; the batch is one vector here, so tolerances are of its elements.
    """
    from scipy.integrate import solve_ivp

    levels = _positive(sigmas)
    tau = (-levels.log()).tolist()

    def change(t: float, flat: object) -> object:
        sigma = torch.tensor(-t, dtype=torch.float64).exp()
        x = torch.as_tensor(flat).reshape(noise.shape).to(noise.device)
        return (_denoised(denoiser, x, sigma.to(x.device)) - x).flatten().cpu().numpy()  # dx/dtau = D - x

    start = noise.detach().double() * levels[0]
    pieces = [start.cpu()]
    for begin, end in zip(tau[:-1], tau[1:], strict=True):
        first = min(FIRST_STEP, end - begin)
        y = pieces[-1].flatten().numpy()
        result = solve_ivp(change, (begin, end), y, "DOP853", rtol=rtol, atol=atol, first_step=first)
        if not result.success:
            raise FloatingPointError(f"DOP853 gave up between tau {begin} and {end}: {result.message}")
        pieces.append(torch.from_numpy(result.y[:, -1].copy()).reshape(noise.shape))
    return torch.stack(pieces).to(device=noise.device, dtype=noise.dtype)


def _positive(sigmas: Tensor | ArrayLike) -> Tensor:
    levels = checked_sigmas(sigmas).detach()
    if not float(levels[-1]) > 0:
        raise ValueError(f"sigmas[{len(levels) - 1}] = 0: the exact flow is solved in log sigma, end above 0 (0.002)")
    return levels


def _scaled_start(noise: Tensor, levels: Tensor) -> Tensor:
    return noise.detach().double() * (levels[0] / (1 + levels[0] ** 2).sqrt())


def _unscaled(states: Tensor, levels: Tensor) -> Tensor:
    return states * (1 + levels**2).sqrt().reshape(-1, *[1] * (states.ndim - 1))


def _field(denoiser: Denoiser) -> Field:
    def change(tau: Tensor, y: Tensor) -> Tensor:
        sigma = (-tau).exp()
        q = (1 + sigma**2).sqrt()
        return _denoised(denoiser, y * q, sigma) / q - y / q**2

    return change


def _denoised(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    denoised = denoiser(x, sigma)
    if denoised.shape != x.shape:
        raise ValueError(f"the denoiser returned shape {tuple(denoised.shape)} for a state of shape {tuple(x.shape)}")
    # Adaptive integrators answer NaN with ever smaller steps; say what happened instead.
    if not bool(denoised.isfinite().all()):
        raise FloatingPointError(
            f"the denoiser returned NaN or infinity at sigma {float(sigma):.6g}: the exact flow ends there; "
            "in half precision try bfloat16 or float32 for the network"
        )
    return denoised


def _worst_sample(error: Tensor) -> Tensor:
    """Root mean square over each sample, then the largest over the batch."""
    if error.ndim < 2:
        return error.abs().max()
    return error.flatten(1).square().mean(1).sqrt().max()
