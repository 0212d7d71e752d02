"""What a model must be like before anything long starts: asked in a handful of calls of a few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import unit_noise
from .protocol import Denoiser, Model

LENGTH = 0.1  # of a finite difference, in noise levels: the scale on which a denoiser bends
TRUE_SHARE = 0.1  # of a derivative that has to be seen by autograd; without gradients it sees 0 of it


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
    |w|^2, for a skip term alone it is 0.

    Args:
        x: (B, *S); two rows are enough.
        sigma: 0-d, of the states x; best one at which the denoiser is neither 0 nor the identity.
    """
    x = x.detach()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    step = LENGTH * float(sigma)
    with torch.no_grad():
        u = (denoiser(x + step * v, sigma) - denoiser(x - step * v, sigma)).double() / (2 * step)
    direction = v.double()
    aside = u - (u * direction).sum() / direction.square().sum() * direction
    # A denoiser that only scales (that of one Gaussian) changes along v alone: then hold the change itself against it.
    w = aside if aside.norm() > 0.01 * u.norm() else u
    with torch.enable_grad():
        x.requires_grad_()
        denoised = denoiser(x, sigma)
        if not denoised.requires_grad:
            return False
        (gradient,) = torch.autograd.grad((denoised.double() * w).sum(), x, allow_unused=True)
    seen = 0.0 if gradient is None else float((gradient.double() * direction).sum())
    return seen > TRUE_SHARE * float((w * u).sum())
