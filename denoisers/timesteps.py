"""Between noise levels and the native times of a network that was trained on a discrete diffusion schedule."""

from __future__ import annotations

import torch
from torch import Tensor


class Timesteps:
    r"""sigma <-> timestep by linear interpolation of log alpha over the integer timesteps 0..T-1, in float64.

    log alpha_t = 0.5 log(alphas_cumprod[t]), alpha = 1 / sqrt(1 + sigma^2) where sigma is the variance-exploding noise
    level. Noise levels outside the trained range get the nearest trained timestep (the network was trained
    with no other; its input and output are still scaled with the true sigma).

    Args:
        alphas_cumprod: (T,), strictly decreasing inside (0, 1].

    Raises:
        ValueError: for another shape or order.

    Reference: arXiv 2206.00927, Appendix D.4 (interpolation of log alpha); arXiv 2206.00364, Appendix C (x / alpha).
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        acp = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
        if acp.ndim != 1 or len(acp) < 2 or not bool((acp.diff() < 0).all() & (acp[-1] > 0) & (acp[0] <= 1)):
            raise ValueError(
                f"alphas_cumprod must be (T,) strictly decreasing inside (0, 1], got shape {tuple(acp.shape)} from "
                f"{acp.flatten()[:1].tolist()} to {acp.flatten()[-1:].tolist()}; a schedule that was rescaled to zero "
                "terminal SNR has no finite largest sigma: leave its last entry out"
            )
        self._falling = 0.5 * acp.log()  # (T,)
        self._tables: dict[torch.device, tuple[Tensor, ...]] = {}
        ends = self.sigma(torch.tensor([0.0, len(acp) - 1.0], dtype=torch.float64))
        self.sigma_min, self.sigma_max = float(ends[0]), float(ends[1])

    def __len__(self) -> int:
        return len(self._falling)

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        """l = -2 log alpha = log(1 + sigma^2) at all T timesteps, at the inner T - 2; the T - 1 lines t = a + b l."""
        if device not in self._tables:
            rising = -2 * self._falling.to(device)  # as searchsorted wants it
            b = 1 / rising.diff()
            a = torch.arange(len(b), device=device) - b * rising[:-1]
            self._tables[device] = rising, rising[1:-1].contiguous(), a, b
        return self._tables[device]

    def sigma(self, timestep: Tensor) -> Tensor:
        """sqrt(exp(-2 log alpha) - 1) at timesteps in [0, T-1] (any shape), float64."""
        t = torch.as_tensor(timestep, dtype=torch.float64)
        table, *_ = self._on(t.device)
        low = t.detach().floor().long().clamp(0, len(table) - 2)
        return torch.lerp(table[low], table[low + 1], t - low).expm1().sqrt()

    def timestep(self, sigma: Tensor, extrapolate: bool = False) -> Tensor:
        """The timestep (float64, any shape) of noise levels >= 0; differentiable, never a host sync.

        Args:
            extrapolate: beyond the trained range go on linearly in log alpha, as grids want it; else stay in [0, T-1].
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        _, inner, a, b = self._on(sigma.device)
        rise = (sigma * sigma).log1p()
        low = torch.searchsorted(inner, rise.contiguous(), right=True)  # 0..T-2
        t = torch.addcmul(a.take(low), b.take(low), rise)
        return t if extrapolate else t.clamp(0, len(self) - 1)


def linear_beta(count: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """alphas_cumprod (count,) of the schedule beta_t = start..end, float64. Reference: arXiv 2006.11239, Section 4."""
    return torch.cumprod(1 - torch.linspace(start, end, count, dtype=torch.float64), 0)
