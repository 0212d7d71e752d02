"""The hand-made rules, each a few lines: which mean slope over [sigma, sigma']?

All of them take `afs`: the first step starts from the analytic slope x / sqrt(1 + sigma^2) in place of a network call.
"""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ..denoisers.protocol import expand
from .walk import Ask, History, Rule, Steps


def analytic_slope(x: Tensor, sigma: Tensor) -> Tensor:
    """AFS, the analytic first slope x / sqrt(1 + sigma^2) of unit-variance data: one call fewer. arXiv 2210.05475.

    Args:
        x: (B, *S).
        sigma: 0-d or (B,).
    """
    return x / expand((sigma * sigma + 1).sqrt(), x)


def current_slope(x: Tensor, sigma: Tensor, n: int, afs: bool) -> Generator[Ask, Tensor, Tensor]:
    """The slope at the state itself, one network call; with AFS the first one is analytic and takes none."""
    if afs and n == 0:
        return analytic_slope(x, sigma)
    answer = yield Ask(x[None], sigma[None])
    return answer[0]


def euler(afs: bool = False) -> Rule:
    """Euler = DDIM, first order, one call a step: the slope at sigma. Reference: arXiv 2010.02502."""

    def rule(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        return (yield from current_slope(x, sigma, n, afs)), history

    return rule


def heun(afs: bool = False) -> Rule:
    """Heun, second order, two calls a step: the mean of the slopes at both ends. arXiv 2206.00364, Algorithm 1."""

    def rule(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        d = yield from current_slope(x, sigma, n, afs)
        d_next = yield Ask((x + expand(sigma_next - sigma, x) * d)[None], sigma_next[None])
        return (d + d_next[0]) / 2, history

    return rule


def dpm2(r: float = 0.5, afs: bool = False) -> Rule:
    """DPM-Solver-2, second order, two calls a step: the second at sigma'^r sigma^(1-r), with weight 1 / (2r).

    Args:
        r: in (0, 1), where the second call is in log sigma.

    Raises:
        ValueError: for another r.

    Reference: arXiv 2206.00927, Algorithm 1.
    """
    if not 0 < r < 1:
        raise ValueError(f"r = {r} must lie inside (0, 1); 0.5 is the geometric midpoint")

    def rule(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        d = yield from current_slope(x, sigma, n, afs)
        mid = sigma_next**r * sigma ** (1 - r)
        d_mid = (yield Ask((x + expand(mid - sigma, x) * d)[None], mid[None]))[0]
        return (d_mid if r == 0.5 else (1 - 1 / (2 * r)) * d + d_mid / (2 * r)), history

    return rule


def uniform_adams_bashforth(order: int) -> list[float]:
    """Adams-Bashforth weights on equal steps, newest slope first, computed exactly in rationals."""
    rows = [[Fraction((-j) ** power) for j in range(order)] for power in range(order)]
    rhs = [Fraction(1, power + 1) for power in range(order)]
    for i in range(order):  # Gauss-Jordan on the moments: sum_j w_j (-j)^p = 1 / (p + 1)
        pivot = next(k for k in range(i, order) if rows[k][i])
        rows[i], rows[pivot], rhs[i], rhs[pivot] = rows[pivot], rows[i], rhs[pivot], rhs[i]
        rhs[i] /= rows[i][i]
        rows[i] = [a / rows[i][i] for a in rows[i]]
        for k in range(order):
            if k != i:
                factor = rows[k][i]
                rhs[k] -= factor * rhs[i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [float(w) for w in rhs]


def adams_bashforth(sigmas: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Weights (p,) for which sum_j w_j f(sigmas_j) is the mean of f over [sigma, sigma'], f of degree < p.

    A Vandermonde system in (sigma_j - sigma) / (sigma' - sigma), solved in float64; exact for any grid. With sigmas
    (p, B), sigma and sigma' (B,), the weights are (p, B).
    """
    u = ((sigmas - sigma) / (sigma_next - sigma)).movedim(0, -1)
    powers = torch.arange(u.shape[-1], dtype=torch.float64, device=u.device)
    rhs = (1 / (powers + 1)).expand_as(u)[..., None]
    # solve itself would read back whether the matrix is singular: distinct sigmas never are.
    return torch.linalg.solve_ex(u[..., None, :] ** powers[:, None], rhs)[0][..., 0].movedim(-1, 0)


def ipndm(order: int = 4, weights: Literal["uniform", "computed"] = "uniform", afs: bool = False) -> Rule:
    """iPNDM: Adams-Bashforth over the last `order` slopes, one call a step. Reference: arXiv 2204.13902.

    Args:
        order: 1 to 4; the first steps use as many slopes as there are.
        weights: `uniform` are the published ones, of equal steps; `computed` are right for the grid at hand.

    Raises:
        ValueError: for another order.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order = {order} must be 1, 2, 3 or 4")
    fixed = [uniform_adams_bashforth(p) for p in range(1, order + 1)]

    def rule(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        d = yield from current_slope(x, sigma, n, afs)
        past = ((sigma, d), *history)[:order]
        if weights == "computed":
            w = [expand(c, x) for c in adams_bashforth(torch.stack([s for s, _ in past]), sigma, sigma_next)]
        else:
            w = fixed[len(past) - 1]
        mean = w[0] * d
        for coefficient, (_, earlier) in zip(w[1:], past[1:], strict=True):
            mean = mean + coefficient * earlier
        return mean, past

    return rule


def dpmpp(
    order: int = 2,
    predict_x0: bool = True,
    num_steps: int | None = None,
    afs: bool = False,
    weights: Literal["published", "exact"] = "published",
) -> Rule:
    r"""DPM-Solver++ (1, 2M, 3M), one call a step; here lambda = -log sigma and h = log(sigma / sigma').

    Order 2: x' = (s'/s) x - expm1(-h) D0 - expm1(-h)/2 D1. Order 3 adds the second difference with
    phi_2 = expm1(-h)/h + 1, phi_3 = phi_2/h - 1/2. Reference: arXiv 2211.01095, Algorithm 2 and Appendix.

    Args:
        order: 1, 2 or 3.
        predict_x0: False is multistep DPM-Solver, on slopes (arXiv 2206.00927).
        weights: `published` gives the third order's second difference half its Taylor weight, as every known
            implementation does, and is then of second order; `exact` is of third order.
        num_steps: N; with it the last steps lower their order (`lower_order_final`), for stability at few steps.

    Raises:
        ValueError: for another order.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"order = {order} must be 1, 2 or 3")

    def rule(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        d = yield from current_slope(x, sigma, n, afs)
        value = x - expand(sigma, x) * d if predict_x0 else d
        past = ((-sigma.log(), value), *history)[:order]
        p = len(past) if num_steps is None else min(len(past), num_steps - n)
        change = _multistep(
            past[:p], (sigma / sigma_next).log(), 1 if predict_x0 else -1, 2 if weights == "exact" else 1
        )
        # x' = x + (s' - s) d + rest: `change` is what the higher orders add, in units of x0 (or of s' eps).
        unit = 1 if predict_x0 else expand(sigma_next, x)
        return d + change * unit / expand(sigma_next - sigma, x), past

    return rule


def _multistep(past: tuple[tuple[Tensor, Tensor], ...], h: Tensor, sign: int, curvature: int) -> Tensor:
    """What DPM-Solver++ (sign 1) or DPM-Solver (sign -1) adds to its first order; curvature 2 is Taylor's."""
    (lam0, m0), rest = past[0], past[1:]
    phi1 = torch.expm1(-sign * h)
    if not rest:
        return torch.zeros_like(m0)
    lam1, m1 = rest[0]
    first = (m0 - m1) * expand(h / (lam0 - lam1), m0)
    if len(rest) == 1:
        return expand(-0.5 * phi1, m0) * first
    lam2, m2 = rest[1]
    r0, r1 = (lam0 - lam1) / h, (lam1 - lam2) / h
    older = (m1 - m2) / expand(r1, m0)
    d1 = first + expand(r0 / (r0 + r1), m0) * (first - older)
    d2 = expand(curvature / (r0 + r1), m0) * (first - older)
    phi2 = phi1 / h + sign
    phi3 = phi2 / h - 0.5
    return expand(sign * phi2, m0) * d1 - expand(phi3, m0) * d2
