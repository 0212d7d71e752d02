"""What a model must be like before anything long starts: asked in a handful of calls of a few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import unit_noise
from .protocol import Denoiser, Model

# Of a finite difference, in noise levels: half precision rounds away what changes over less than the first, an exact
# denoiser of many modes bends within it.
LENGTHS = (0.1, 0.02)
TOLERANCE = 0.25  # of what autograd sees of a derivative: rounding and bends; without gradients it sees none of it


def middle_sigma(model: Model) -> float:
    """A noise level at which a denoiser is neither 0 nor the identity: 1/2 of a flow, the geometric mean of the range
    otherwise.
    """
    return 0.5 if model.path == "flow" else (model.sigma_min * model.sigma_max) ** 0.5


def model_has_gradients(model: Model, dtype: torch.dtype = torch.float32) -> bool:
    """`has_gradients` of two samples of a model, half way between noise and data."""
    sigma = middle_sigma(model)
    x = unit_noise([0, 1], model.shape, dtype, model.device) * sigma
    return has_gradients(model.for_seeds([0, 1]), x, torch.tensor(sigma, dtype=torch.float64, device=x.device))


def has_gradients(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> bool:
    """Whether autograd sees how the denoiser's output depends on x: three calls, one of them with a backward pass.

    D = c_skip x + c_out F has a gradient through its first term although F runs under `no_grad`, in another framework
    or is detached, so `requires_grad` proves nothing. Here the change u of D along a random direction v is measured by
    a difference, and w^T (dD/dx) v by autograd, where w is u without its share along v: for true gradients it is
    |w|^2, for a skip term alone it is 0, for a network half of which is detached it is between them.

    Args:
        x: (B, *S); two rows are enough.
        sigma: 0-d, of the states x; best one at which the denoiser is neither 0 nor the identity.
    """
    # What is not finite is no question of gradients: the solver says where it happens.
    return any(not abs(_seen_share(denoiser, x.detach(), sigma, length) - 1) > TOLERANCE for length in LENGTHS)


def _seen_share(denoiser: Denoiser, x: Tensor, sigma: Tensor, length: float) -> float:
    """What autograd sees of a directional derivative, over what a difference of this length measures."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
    step = length * float(sigma)
    with torch.no_grad():
        ends = [denoiser(x + sign * (step * direction).to(x.dtype), sigma).double() for sign in (1, -1)]
    u = (ends[0] - ends[1]) / (2 * step)
    aside = u - (u * direction).sum() / direction.square().sum() * direction
    # A denoiser that only scales (that of one Gaussian) changes along v alone: then hold the change itself against it.
    w = aside if aside.norm() > 0.01 * u.norm() else u
    with torch.enable_grad():
        inputs = x.clone().requires_grad_()
        denoised = denoiser(inputs, sigma)
        if not denoised.requires_grad:
            return 0.0
        (gradient,) = torch.autograd.grad((denoised.double() * w).sum(), inputs, allow_unused=True)
    seen = 0.0 if gradient is None else float((gradient.double() * direction).sum())
    measured = float((w * u).sum())
    return 1.0 if seen == measured else seen / max(measured, 1e-300)  # equal where D is constant: both are 0
