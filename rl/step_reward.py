"""What a trajectory earns: the quality of its picture, discounted by the calls that it took."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def discount(calls: Tensor, decay: float) -> Tensor:
    """f(K) = (1 - decay^K) / (K (1 - decay)), the mean of decay^(K - j) over j = 1 ... K, in closed form; float64.

    It falls with K, from 1 at a single call; K may be fractional. At decay = 1 it is 1.

    Args:
        calls: K > 0, any shape.
        decay: lambda in (0, 1]; smaller: fewer calls are worth more.

    Raises:
        ValueError: for values outside of these.

    Reference: arXiv 2412.01243, arXiv 2509.22323.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay = {decay} must be in (0, 1]: 0.97 is usual, 0.9 makes fewer calls")
    calls = calls.double()
    if not bool((calls > 0).all() & calls.isfinite().all()):
        raise ValueError(f"calls = {calls.flatten()[:8].tolist()} ... must be > 0: a sample takes a call at least")
    if decay == 1:
        return torch.ones_like(calls)
    return -torch.expm1(calls * math.log(decay)) / (calls * (1 - decay))


def quality_of(scores: Tensor, shift: float | None) -> Tensor:
    """Scores as what is discounted: max(score + shift, 0); as they are where `shift` is None, which is as published.

    f(K) falls with K: of a negative quality more calls would earn more, so that a policy learns to waste them on
    prompts that it cannot serve.
    """
    return scores if shift is None else (scores + shift).clamp_min(0.0)


def discounted(quality: Tensor, calls: Tensor, decay: float, real: Tensor | None = None, weight: float = 1.0) -> Tensor:
    """r = (q + weight d) f(K), (B,) float64.

    Args:
        quality: (B,) q, see `quality_of`.
        calls: (B,) K.
        decay: see `discount`.
        real: (B,) d, the probability by which a discriminator takes the picture for one of the plain sampler; None: 0.
        weight: of d.
    """
    whole = quality.double() if real is None else quality.double() + weight * real.double()
    return whole * discount(calls, decay)


def with_spread(rewards: Tensor) -> Tensor:
    """Which groups (P,) of rewards (P, G) tell anything: those whose rewards are not all equal."""
    return (rewards != rewards[:, :1]).any(1)
