"""What a table is judged by: residuals of its trajectory against the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..denoisers.protocol import Denoiser, expand
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


# Of the search for a nearer start. On `digits-exact`, 5 calls of LD3 before training, the root mean square distance of
# 1.81 falls to 1.17 within a radius of 0.1, and to 1.11 by 40 moves.
MOVES = 2
Residual = Callable[[Coefficients, Denoiser, Chunk], Tensor]


def mean_square(residual: Residual, c: Coefficients, chunks: Iterable[Chunk]) -> Tensor:
    """mean(residual^2) over all chunks, (1,) float64 on the CPU; one chunk is in memory at a time."""
    total, count = torch.zeros(1, dtype=torch.float64), 0
    for chunk in chunks:
        r = residual(c, chunk.denoiser, chunk)
        total, count = total + r.square().sum().cpu(), count + len(r)
    return total / count


def end_residual(features: nn.Module | None = None, feature_weight: float = 0.0, relax: float = 0.0) -> Residual:
    """x_N - teacher's end point, per element (R,) float64; feature differences appended, weighted to equal shares.

    mean(residual^2) = mse + feature_weight * feature mse, up to one common factor.

    Args:
        relax: x_N is solved from the start of `nearest_start` within this radius.
    """

    def residual(c: Coefficients, denoiser: Denoiser, chunk: Chunk) -> Tensor:
        noise = nearest_start(c, chunk, relax) if relax else chunk.noise
        x, end = solve(parallel(c), denoiser, noise, c.sigmas), chunk.states[-1]
        out = (x - end).flatten()
        if features is None or feature_weight == 0:
            return out.double()
        extra = (features(x) - features(end)).flatten()
        gain = (feature_weight * len(out) / len(extra)) ** 0.5
        return torch.cat([out, gain * extra]).double()

    return residual


def nearest_start(c: Coefficients, chunk: Chunk, radius: float) -> Tensor:
    """Noise z (B, *S), |z - noise| <= radius sample by sample, from which the end point x_N(z) is nearer to the
    teacher's, which was solved from the noise itself: min over z of d = |x_N(z) - end|^2.

    By MOVES projected gradient steps z -= d / |grad d|^2 grad d (Polyak's length, as d can be zero); of all that were
    seen the best, so that no sample is further away than without. Gradients of c pass it by: at a minimum, z's own
    change adds nothing to first order. Reference: arXiv 2405.15506, soft teacher forcing.
    """
    end, z, best = chunk.states[-1], chunk.noise, chunk.noise
    least = torch.zeros(())
    for move in range(MOVES + 1):
        with torch.enable_grad():
            start = z.detach().requires_grad_(move < MOVES)
            away = (solve(parallel(c), chunk.denoiser, start, c.sigmas) - end).flatten(1).square().sum(1)
            gradient = torch.autograd.grad(away.sum(), start)[0] if move < MOVES else None
        away = away.detach()
        if move == 0:
            least = away
        else:
            best = torch.where((away < least).reshape(-1, *[1] * (z.ndim - 1)), z, best)
            least = torch.minimum(away, least)
        if gradient is not None:
            slope = gradient.flatten(1).square().sum(1)
            offset = z - expand(torch.where(slope > 0, away / slope, 0), z) * gradient - chunk.noise
            length = offset.flatten(1).norm(dim=1)
            z = chunk.noise + expand((radius / length.clamp_min(radius)), z) * offset
    return best


def steps_loss(c: Coefficients, chunk: Chunk) -> Tensor:
    """The paper's per-step matching: mean over steps of |x_{n+1} - teacher_{n+1}|^2, each step from a detached state.

    Reference: arXiv 2507.14797, Section 3.3 (after AMED, arXiv 2312.00094).
    """

    states = list(trajectory(parallel(c), chunk.denoiser, chunk.noise, c.sigmas, detach=True))
    terms = [(x - t).square().mean() for x, t in zip(states[1:], chunk.states, strict=True)]
    return torch.stack(terms).mean()
