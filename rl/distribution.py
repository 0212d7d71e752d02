"""A distribution over tables: Dirichlets and normals in the coordinates of a structure, with exact KL and entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..solvers.parallel import Coefficients
from ..solvers.table import Table
from .structure import INSIDE, Structure


@dataclass(frozen=True, eq=False)
class Samples:
    """B sampled tables.

    Args:
        structure: what the values mean.
        values: (B, E + D) float64.
    """

    structure: Structure
    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice | Tensor) -> Samples:
        """Some of them, by a slice or by indices (B',): a rank's share, a minibatch."""
        return Samples(self.structure, self.values[index])

    def coefficients(self) -> Coefficients:
        """Coefficients with a sample axis B, for `parallel`: one network call serves all tables.

        `solve(parallel(c), denoiser, noise, c.sigmas)` solves sample b of the noise (B, *S) by table b.
        """
        return self.structure.coefficients(self.values)

    def table(self, index: int) -> Table:
        """One of them as a Table, the base its parent."""
        return self.structure.table(self.values[index])


@dataclass(frozen=True, eq=False)
class TableDistribution:
    """Independent Dirichlets over G groups of E shares, and D independent normals.

    Densities are those of torch.distributions: of a Dirichlet's shares, and of the Gaussian coordinates (log scales,
    changes of weights), not of what the table makes of them. Ratios of densities and the KL do not depend on that.

    Args:
        structure: what the numbers mean.
        concentration: (E,) > 0, or (B, E) where each sample has its own.
        mean: (D,) or (B, D).
        std: the same, > 0.
    """

    structure: Structure
    concentration: Tensor
    mean: Tensor
    std: Tensor

    def sample(self, count: int, generator: torch.Generator, antithetic: bool = False) -> Samples:
        """`count` tables, without gradients; equal generators give equal tables.

        Args:
            count: B >= 1, that of the distribution where each sample has its own.
            generator: on the CPU.
            antithetic: samples 2i and 2i + 1 have opposite normals (their Dirichlets are independent); count is even.

        Raises:
            ValueError: for a count that does not fit.
        """
        if count < 1 or (antithetic and count % 2) or (self.mean.ndim == 2 and count != len(self.mean)):
            each = f", and {len(self.mean)}, one for each context" if self.mean.ndim == 2 else ""
            raise ValueError(f"count = {count} must be at least 1, even where pairs are antithetic{each}")
        with torch.no_grad():
            # torch.distributions takes no generator.
            a = self.concentration.expand(count, -1).contiguous()
            gammas = torch._standard_gamma(a, generator)  # type: ignore[reportPrivateImportUsage]
            drawn = count // 2 if antithetic else count
            normals = torch.randn(drawn, self.mean.shape[-1], generator=generator, dtype=torch.float64)
            if antithetic:
                normals = torch.stack([normals, -normals], 1).flatten(0, 1)
            return Samples(self.structure, torch.cat([self._inside(gammas), self.mean + self.std * normals], 1))

    def log_prob(self, samples: Samples) -> Tensor:
        """Log density of each sample, (B,)."""
        shares, normals = samples.values.split([self.concentration.shape[-1], self.mean.shape[-1]], -1)
        a = self.concentration
        dirichlet = ((a - 1) * shares.log()).sum(-1) - self._log_beta
        z = (normals - self.mean) / self.std
        return dirichlet - (z.square() / 2 + self.std.log() + math.log(2 * math.pi) / 2).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy, 0-d or (B,)."""
        a, totals = self.concentration, self._totals
        counts = self.structure.groups.sum(0)
        dirichlet = self._log_beta + ((totals - counts) * totals.digamma()).sum(-1) - ((a - 1) * a.digamma()).sum(-1)
        return dirichlet + (self.std.log() + (1 + math.log(2 * math.pi)) / 2).sum(-1)

    def kl(self, other: TableDistribution) -> Tensor:
        """KL(self || other), exact, 0-d or (B,).

        Raises:
            ValueError: for a distribution around another base or of another parametrisation.
        """
        self.structure.require_same(other.structure)
        a, b = self.concentration, other.concentration
        expected = a.digamma() - self._totals.digamma() @ self.structure.groups.T  # E[log share]
        dirichlet = other._log_beta - self._log_beta + ((a - b) * expected).sum(-1)
        ratio, z = self.std / other.std, (self.mean - other.mean) / other.std
        return dirichlet + ((ratio.square() + z.square() - 1) / 2 - ratio.log()).sum(-1)

    @property
    def expected(self) -> Tensor:
        """(E + D,) or (B, E + D): the mean values, for `Structure.table`."""
        return torch.cat([self._inside(self.concentration), self.mean], -1)

    def _inside(self, gammas: Tensor) -> Tensor:
        """Positive numbers over their groups' sums, kept off the border."""
        groups = self.structure.groups
        shares = (gammas / (gammas @ groups @ groups.T)).clamp_min(INSIDE)
        return shares / (shares @ groups @ groups.T)

    @property
    def _totals(self) -> Tensor:
        return self.concentration @ self.structure.groups

    @property
    def _log_beta(self) -> Tensor:
        return self.concentration.lgamma().sum(-1) - self._totals.lgamma().sum(-1)
