"""Whether autograd sees what differences see, and whether differences see more than rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import middle_sigma
from .noise import unit_noise
from .protocol import Denoiser, Model, coefficient_device
from .rows import limit_rows

# Of a difference, in noise levels: half precision rounds away what changes over less than the first, an exact denoiser
# of many modes bends within it, and an embedding of time may oscillate within the second.
LENGTHS = (0.1, 0.02, 0.004, 0.001)
TOLERANCE = 0.25  # of what autograd sees of a derivative: rounding and bends; where it is cut off, it sees far less
LEAST_SHARE = 0.05  # of a derivative, in the part of it that the network alone can have: less is rounding
# Half precision rounds what autograd says as well: of a derivative that is there it may see anything, and of one that
# is cut off no more than this.
CUT_OFF = 0.1
ROUNDED = 0.05  # of a difference, what another one does not repeat: 1e-3 in float32, 0.1 to 1 in half precision
Line = Callable[[Tensor], Tensor]  # how far along, in noise levels -> denoised


def model_has_gradients(model: Model, dtype: torch.dtype = torch.float32) -> bool:
    """`has_gradients` of a model half way between noise and data, at two samples, or one where a call takes no more."""
    seeds = [0, 1][: limit_rows(model).rows(gradients=True)]
    sigma = torch.tensor(middle_sigma(model), dtype=torch.float64, device=coefficient_device(model.device))
    x = unit_noise(seeds, model.shape, dtype, model.device) * middle_sigma(model)
    return has_gradients(model.for_seeds(seeds), x, sigma)


def has_gradients(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> bool:
    """Whether autograd sees how the denoised depends on x and on sigma, 0-d or (B,).

    D = c_skip x + c_out F(c_in x, c_noise) has a gradient through its coefficients although F runs under `no_grad`, in
    another framework, with rounded timesteps or detached in part, so `requires_grad` proves nothing. Here the
    derivative u of D along a line is measured by a difference, and w^T dD/ds by autograd, where w is the share of u in
    the span of what the coefficients alone can change, or the rest of u: true gradients give w^T u for both, and 0 for
    the rest where F is cut off.

    Args:
        x: (B, *S); one row is enough.
        sigma: 0-d, of the states x; best one at which the denoiser is neither 0 nor the identity.
    """
    x = x.detach()
    direction, aside = (_noise(x, seed) for seed in (0, 1))
    beside = x + (LENGTHS[1] * sigma).to(x) * aside
    linear = _of_coefficients(denoiser, x, sigma)
    spans = (direction.cpu().double()[:, None].flatten(2), linear, linear)
    lines = zip(_lines(denoiser, x, sigma, direction), _lines(denoiser, beside, sigma, direction), spans, strict=True)
    (along_x, nearby, span), *along_sigma = lines
    rounded = _is_rounded(along_x, nearby, span)
    # Along sigma a network that rounds its times changes over long steps alone, and is what is looked for.
    return _is_seen(along_x, nearby, span, rounded, bends=True) and all(
        _is_seen(*line, rounded, bends=False) for line in along_sigma
    )


def _is_rounded(line: Line, nearby: Line, span: Tensor) -> bool:
    """Whether the shortest differences are rounding, as in half precision: another one does not repeat them."""
    whole = _difference(nearby, LENGTHS[-1])
    part = _without(whole, span)
    return bool(part.norm() > LEAST_SHARE * whole.norm()) and not _tells(_difference(line, LENGTHS[-1]), part, whole)


def _noise(x: Tensor, seed: int) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.to(x.dtype).to(x.device)


def _lines(denoiser: Denoiser, x: Tensor, sigma: Tensor, direction: Tensor) -> tuple[Line, Line, Line]:
    """Through x and sigma: along a direction of x, along sigma 0-d, along sigma (B,)."""

    def along_x(s: Tensor) -> Tensor:
        return denoiser(x + (s * sigma).to(x) * direction, sigma)

    def along_sigma(s: Tensor) -> Tensor:
        return denoiser(x, sigma * (1 + s))

    def along_sigmas(s: Tensor) -> Tensor:
        return denoiser(x, (sigma * (1 + s)).expand(len(x)))

    return along_x, along_sigma, along_sigmas


def differences_are_rounded(model: Model, step: float, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the network's rounding is a good part of its difference over `step` noise levels: five calls of one row.

    Half precision rounds by 1e-3 and float32 by 1e-7 of the output, which is then divided by `step`. What the
    coefficients alone can change is left out, as they are exact.
    """
    level = middle_sigma(model)
    x, direction = (unit_noise([seed], model.shape, dtype, model.device) for seed in (0, 1))
    sigma = torch.tensor(level, dtype=torch.float64, device=coefficient_device(model.device))
    denoiser = model.for_seeds([0])

    def along_x(s: Tensor) -> Tensor:
        return denoiser((x + float(s) * direction) * level, sigma)

    with torch.no_grad():
        _require_shape(denoiser(x * level, sigma), x)
    span = direction.cpu().double()[:, None].flatten(2)
    first, second = (_without(_difference(along_x, at * step), span) for at in (1.0, 0.8))
    return bool((first - second).norm() > ROUNDED * first.norm())


def _of_coefficients(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """x, D and (dD/dx) x of each row, (B, 3, n): along these c_skip, c_out and c_in change D."""
    with torch.no_grad():
        middle, ahead, behind = (denoiser(x * (1 + s), sigma).cpu().double() for s in (0.0, 0.05, -0.05))
    _require_shape(middle, x)
    return torch.stack([x.cpu().double(), middle, ahead - behind], 1).flatten(2)


def _is_seen(line: Line, nearby: Line, span: Tensor, rounded: bool, bends: bool) -> bool:
    """Whether autograd sees the derivative along a line, in the span and beside it.

    One length at which it does is enough, and so is that differences tell nothing at any: a network that rounds or
    embeds time may oscillate within all of them. That autograd sees more than they do is no fault for the same reason.

    Args:
        rounded: what autograd sees is rounded, too; only nothing at all is a fault.
        bends: a part that only longer differences have is none of the derivative: their ends lie in other modes.
    """
    inside, beside = [], []
    for length in LENGTHS:
        # Of two states, as the rounding of one would stand on both sides of a quotient.
        u, other = _difference(line, length), _difference(nearby, length)
        aside = _without(other, span)
        for part, seen in ((other - aside, inside), (aside, beside)):
            if not any(seen) and _tells(u, part, other):
                share = _seen_share(line, u, part)
                seen.append(abs(share) > CUT_OFF if rounded else share > 1 - TOLERANCE)
            elif bends and not any(seen) and part.norm() <= LEAST_SHARE * other.norm():
                seen.append(True)
        if any(inside) and any(beside):
            return True
    return all(any(seen) or not seen for seen in (inside, beside))


def _tells(u: Tensor, part: Tensor, whole: Tensor) -> bool:
    """Whether a part of a difference is more than rounding, which another difference u does not repeat."""
    is_there = bool(part.norm() > LEAST_SHARE * whole.norm())
    return is_there and 0.5 < float((u * part).sum() / part.square().sum()) < 1.5


def _difference(line: Line, length: float) -> Tensor:
    """The derivative along a line, (B, n) float64 in main memory."""
    with torch.no_grad():
        ahead, behind = (line(torch.tensor(at, dtype=torch.float64)).cpu().double() for at in (length, -length))
    return (ahead - behind).flatten(1) / (2 * length)


def _require_shape(denoised: Tensor, x: Tensor) -> None:
    if denoised.shape != x.shape:
        raise ValueError(f"the denoiser returned shape {tuple(denoised.shape)} for x of shape {tuple(x.shape)}")


def _seen_share(line: Line, u: Tensor, part: Tensor) -> float:
    """What autograd sees of a derivative u along a line, in the direction of a part of it."""
    with torch.enable_grad():
        start = torch.zeros((), dtype=torch.float64, requires_grad=True)
        denoised = line(start).flatten(1)
        if not denoised.requires_grad:
            return 0.0
        weighted = (denoised.cpu().double() * part).sum()
        (gradient,) = torch.autograd.grad(weighted, start, allow_unused=True)
    return 0.0 if gradient is None else float(gradient / (u * part).sum())


def _without(u: Tensor, span: Tensor) -> Tensor:
    """u (B, n) without its share in the span (B, k, n) of each row."""
    if not bool(span.isfinite().all()):
        return u
    basis = torch.linalg.svd(span, full_matrices=False)
    used = basis.S > 1e-6 * basis.S[:, :1]  # x and D may be parallel
    return u - torch.einsum("bk,bkn->bn", torch.einsum("bkn,bn->bk", basis.Vh, u) * used, basis.Vh)
