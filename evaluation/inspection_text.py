"""What an inspection found, in words."""

from __future__ import annotations

import math

from .course import UPDATE
from .inspection import Inspection

MANY = 0.999  # of the variance: what counts as all of it


def verdict(i: Inspection) -> str:
    """A few lines for a person: the end, the worst step, how flat the trajectories are, where the directions point."""
    found = i.metrics()
    n = i.worst
    lines = [
        f"{i.solver} on {i.model}: {i.calls} sequential calls, {i.evaluations} evaluations a sample; {i.samples} "
        "samples beside the converged trajectory",
        f"end:         RMSE {found['rmse']:.4g}, median of a sample {found['median']:.4g}",
        f"worst step:  {n} of 0 to {i.num_steps - 1}, sigma {i.sigmas[n]:.4g} to {i.sigmas[n + 1]:.4g}: begun on the "
        f"converged trajectory it errs by {found['worst_local_error']:.3g} of the state's size",
        f"dimension:   {dimension(i)}",
        f"directions:  {directions(i)}",
    ]
    turned = i.curvature.mean(1)
    sharpest = int(turned.argmax())
    lines.append(
        f"curvature:   the slope turns by {float(turned.sum()):.3g} degrees in all, most ({turned[sharpest]:.3g}) in "
        f"step {sharpest}"
    )
    return "\n".join(lines)


def dimension(i: Inspection) -> str:
    """How many components hold almost all of the variance."""
    shares = i.explained.mean(0).tolist()
    text = ", ".join(f"{percent(share)} along {k}" for k, share in enumerate(shares, 1))
    enough = next((k for k, share in enumerate(shares, 1) if share >= MANY), None)
    held = f"{enough} component{'s' * (enough > 1)}" if enough else f"more than {len(shares)} components"
    return f"{held} hold{'s' * (enough == 1)} {MANY:.1%} of a trajectory's variance ({text})"


def directions(i: Inspection) -> str:
    """Mean angles to the true mean slope, over all steps that have the direction."""
    parts = []
    for name in i.directions:
        mean = i.mean_angles(name).nanmean()
        if math.isfinite(float(mean)):
            parts.append(f"{name} {float(mean):.3g}")
    largest = int(i.mean_angles(UPDATE).nan_to_num(0.0).argmax())
    return f"{', '.join(parts)} degrees off the true mean slope; the update most in step {largest}"


def percent(share: float) -> str:
    """A share with as many digits as tell it from one: 50.0 %, 99.93 %, 99.9996 %."""
    if share >= 1 - 1e-9:
        return "100 %"
    digits = max(1, math.ceil(-math.log10(1 - share) - 1e-6) - 2)
    return f"{100 * share:.{digits}f} %"
