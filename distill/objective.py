"""What a table is judged by: residuals of its trajectory against the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..denoisers.protocol import Denoiser
from ..solvers.parallel import Coefficients, parallel
from ..solvers.solve import solve, trajectory


@dataclass(frozen=True)
class Chunk:
    """Samples that are solved together.

    Args:
        denoiser: bound to these samples.
        noise: (B, *S) unit variance.
        states: (T, B, *S) the teacher's; T = 1: the end point; T = N: after each step of the table.
    """

    denoiser: Denoiser
    noise: Tensor
    states: Tensor

    def to(self, device: str) -> Chunk:
        """The samples where they are solved."""
        return Chunk(self.denoiser, self.noise.to(device), self.states.to(device))


Residual = Callable[[Coefficients, Denoiser, Chunk], Tensor]


def mean_square(residual: Residual, c: Coefficients, chunks: Iterable[Chunk]) -> Tensor:
    """mean(residual^2) over all chunks, (1,) float64 on the CPU; one chunk is in memory at a time."""
    total, count = torch.zeros(1, dtype=torch.float64), 0
    for chunk in chunks:
        r = residual(c, chunk.denoiser, chunk)
        total, count = total + r.square().sum().cpu(), count + len(r)
    return total / count


def end_residual(features: nn.Module | None = None, feature_weight: float = 0.0) -> Residual:
    """x_N - teacher's end point, per element (R,) float64; feature differences appended, weighted to equal shares.

    mean(residual^2) = mse + feature_weight * feature mse, up to one common factor.
    """

    def residual(c: Coefficients, denoiser: Denoiser, chunk: Chunk) -> Tensor:
        x, end = solve(parallel(c), denoiser, chunk.noise, c.sigmas), chunk.states[-1]
        out = (x - end).flatten()
        if features is None or feature_weight == 0:
            return out.double()
        extra = (features(x) - features(end)).flatten()
        gain = (feature_weight * len(out) / len(extra)) ** 0.5
        return torch.cat([out, gain * extra]).double()

    return residual


def steps_loss(c: Coefficients, chunk: Chunk) -> Tensor:
    """The paper's per-step matching: mean over steps of |x_{n+1} - teacher_{n+1}|^2, each step from a detached state.

    Reference: arXiv 2507.14797, Section 3.3 (after AMED, arXiv 2312.00094).
    """

    states = list(trajectory(parallel(c), chunk.denoiser, chunk.noise, c.sigmas, detach=True))
    terms = [(x - t).square().mean() for x, t in zip(states[1:], chunk.states, strict=True)]
    return torch.stack(terms).mean()
