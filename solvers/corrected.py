"""A hand-made solver whose slopes are corrected along a few directions of each sample's own trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.protocol import expand
from .walk import History, Rule, Steps

SIZE = 4  # directions, the paper's
NOTHING = 1e-4  # of a unit vector: what is left of it then is rounding


@dataclass(frozen=True)
class Slope:
    """A slope that the network has given, before the step is taken.

    Args:
        n: the step.
        x: the state (B, *S) that it is of.
        stride: sigma_{n+1} - sigma_n.
        value: the slope, (B, *S).
        seen: the first state, and the slopes of the steps before as they were taken, (B, *S) each.
        mean: another slope in its place -> the mean slope of the rule, which is affine in it.
    """

    n: int
    x: Tensor
    stride: Tensor
    value: Tensor
    seen: tuple[Tensor, ...]
    mean: Callable[[Tensor], Tensor]


Correct = Callable[[Slope], Tensor]  # the slope that is taken, (B, *S)


def directions(slope: Tensor, seen: Sequence[Tensor]) -> Tensor:
    """(B, K, d) orthonormal: the slope's own direction, then the principal ones of what was seen, as far as they go.

    u_1 = d / |d|. Then the first three right singular vectors of the rows [x_0, d_0, ..., d], one after another, each
    without what lies along those before it; one of which nothing is left is 0. Singular vectors have no sign: here the
    slope's own loading on each is positive, so that samples can share coordinates. Reference: arXiv 2411.06503, 3.2.

    Args:
        slope: (B, *S).
        seen: of `Slope`.

    Raises:
        FloatingPointError: where one of them is not finite.
    """
    rows = torch.stack([*seen, slope], 1).flatten(2)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    try:
        loadings, values, principal = torch.linalg.svd(rows, full_matrices=False)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise FloatingPointError(f"slopes that are not finite have no directions: {error}") from error
    signs = torch.where(loadings[:, -1] < 0, -1.0, 1.0).to(rows)
    # Where the rows span less, the other singular vectors are anything.
    signs = signs * (values > values[:, :1] * torch.finfo(rows.dtype).eps * max(rows.shape[1:]))
    left = [*(principal * signs[..., None]).unbind(1)][: SIZE - 1]
    out = [torch.nn.functional.normalize(rows[:, -1], dim=1)]
    for vector in left:
        for unit in out:
            vector = vector - (vector * unit).sum(1, keepdim=True) * unit
        length = vector.norm(dim=1, keepdim=True)
        out.append(torch.where(length > NOTHING, vector / length, torch.zeros_like(vector)))
    return torch.stack(out, 1)


def along(coordinates: Tensor, units: Tensor, like: Tensor) -> Tensor:
    """sum_k c_k u_k (B, *S), of coordinates (K,) and `directions`, of which there are fewer at first."""
    weights = coordinates[: units.shape[1]].to(units)
    return (weights[:, None] * units).sum(1).to(like.dtype).reshape(like.shape)


def corrected(rule: Rule, correct: Correct) -> Rule:
    """A rule of one call a step that goes on with another slope in the place of each one that the network gives.

    Raises:
        ValueError: by the rule, where a step asks a second question or for several points.
    """

    def correcting(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        inner, seen = history or ((), (x,))

        def mean(slope: Tensor) -> Tensor:
            again = rule(x, sigma, sigma_next, n, inner)
            next(again)
            return _finished(again, slope, n)[0]

        asking = rule(x, sigma, sigma_next, n, inner)
        try:
            ask = next(asking)
        except StopIteration as stop:  # an analytic first step, which has no network to err
            own, remembered = stop.value
            return own, (remembered, seen)
        if len(ask.points) > 1:
            raise ValueError(f"step {n} asks for {len(ask.points)} points: only rules of one are corrected")
        given = (yield ask)[0]
        taken = correct(Slope(n, x, expand(sigma_next - sigma, x), given, seen, mean))
        own, remembered = _finished(asking, taken, n)
        return own, (remembered, (*seen, taken))

    return correcting


def _finished(asking: Steps, slope: Tensor, n: int) -> tuple[Tensor, History]:
    """The mean slope and the history of a step whose one question is answered by a slope."""
    try:
        asking.send(slope[None])
    except StopIteration as stop:
        return stop.value
    raise ValueError(f"step {n} asks a second question: only rules of one call a step are corrected")


def pas(rule: Rule, coordinates: Sequence[Tensor | None]) -> Rule:
    """A rule of one call a step with slopes d~ = sum_k c_k u_k. Reference: arXiv 2411.06503, Algorithm 2.

    Args:
        coordinates: of each step, (K,) in `directions`; None: its slope is taken as it is.
    """

    def correct(slope: Slope) -> Tensor:
        own = coordinates[slope.n]
        return slope.value if own is None else along(own, directions(slope.value, slope.seen), slope.value)

    return corrected(rule, correct)
