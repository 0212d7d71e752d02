"""Scales of slopes and of told noise levels, in bounds, from unconstrained numbers."""

from __future__ import annotations

from torch import Tensor

SCALE = 0.2  # slope and sigma scales stay within 1 +- this; the published tables use 0.05 to 0.2
WIDE = 1.0  # where the anchor's sigma scale is learned, too, log sigma scales stay within +- this
# Noise levels, the schedule's and told ones, move so much slower than weights: at the same speed they run off to small
# sigmas before the weights are settled, into optima that are 1.4 times worse (`digits-exact`, 7 calls, 3 of 5 seeds).
SLOW = 0.3
EDGE = 1e-9  # of a range: what training pushed to its end can be learned on


def narrow_scale(raw: Tensor) -> Tensor:
    """1 + SCALE tanh(raw)."""
    return 1 + SCALE * raw.tanh()


def inverse_scale(values: Tensor) -> Tensor:
    """The raw numbers of these scales.

    Raises:
        ValueError: for one outside 1 +- SCALE.
    """
    return _inverse((values - 1) / SCALE, f"1 +- {SCALE}")


def wide_scale(raw: Tensor) -> Tensor:
    """exp(WIDE tanh(SLOW raw))."""
    return (WIDE * (SLOW * raw).tanh()).exp()


def inverse_wide_scale(values: Tensor) -> Tensor:
    """The raw numbers of these scales.

    Raises:
        ValueError: for one outside exp(+-WIDE).
    """
    return _inverse(values.log() / WIDE, f"exp(+-{WIDE:g})") / SLOW


def _inverse(inside: Tensor, bounds: str) -> Tensor:
    if bool(inside.abs().gt(1 + EDGE).any()):
        raise ValueError(f"a scale of the initial table lies outside {bounds}: start from unit scales")
    return inside.clamp(-1 + EDGE, 1 - EDGE).atanh()
