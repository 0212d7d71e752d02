"""The policy: a small network whose residuals move a distribution over tables away from its base."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..solvers.table import Table
from .distribution import Samples, TableDistribution
from .parametrisation import PARAMETRISATIONS, Parametrisation
from .structure import Structure

# Residuals on log concentrations and log deviations stay within this: e^4 narrower or wider than at the start.
FARTHEST = 4.0


class Policy(nn.Module):
    """A distribution over tables around a base, in float64 on the CPU: per step, a residual on its parameters.

    residual[n] = MLP(embedding[n] + linear(context)); log concentration = log(c share) + bounded residual;
    mean = std0 residual; log std = log std0 + bounded residual. The MLP's last layer starts at zero, so that the mean
    table is the base to 1e-6, whatever the context. Reference: arXiv 2512.22796.

    Args:
        base: the table to refine.
        kind: a name of PARAMETRISATIONS, `published` or `ours`, or one of your own.
        context_size: C, numbers of the context that tables depend on (prompt embedding, guidance, ...); 0: none.
        width: of embedding and hidden layer.
        seed: of the initial weights.
        mix: (D, D) of `Structure.of`, such as `whitening` makes; none: each number by itself.

    Raises:
        ValueError: for an unknown name, a size out of range, or a base that the parametrisation does not fit.
    """

    def __init__(
        self,
        base: Table,
        kind: str | Parametrisation = "ours",
        context_size: int = 0,
        width: int = 32,
        seed: int = 0,
        mix: Tensor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(kind, str):
            if kind not in PARAMETRISATIONS:
                raise ValueError(f"kind = {kind!r} is unknown: give one of {', '.join(PARAMETRISATIONS)}")
            kind = PARAMETRISATIONS[kind]
        if context_size < 0 or width < 1:
            raise ValueError(f"context_size = {context_size} must be >= 0 and width = {width} at least 1")
        self.structure = s = Structure.of(base, kind, mix)
        self.register_buffer("mix", mix)
        self.context_size = context_size
        # A normal has two outputs, mean and log deviation.
        steps = torch.cat([s.steps, s.steps[len(s.shares) :]])
        earlier = nn.functional.one_hot(steps, base.num_steps).cumsum(0)[torch.arange(len(steps)), steps] - 1
        outputs = int(earlier.max()) + 1
        self._where = steps * outputs + earlier  # of each residual among the outputs of all steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(base.num_steps, width, dtype=torch.float64)
            self.context = nn.Linear(context_size, width, dtype=torch.float64) if context_size else None
            self.hidden = nn.Linear(width, width, dtype=torch.float64)
            self.last = nn.Linear(width, outputs, dtype=torch.float64)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, context: Tensor | None = None) -> TableDistribution:
        """The distribution over tables; with a context (B, C) one for each of its rows.

        Raises:
            ValueError: for a context of another shape, or one that the policy has no use for.
        """
        inputs = self.embedding.weight
        if context is not None or self.context is not None:
            inputs = inputs + self._embedded(context)[:, None]
        residual = self.last(nn.functional.silu(self.hidden(nn.functional.silu(inputs)))).flatten(-2)[..., self._where]
        s = self.structure
        shares, mean, log_std = residual.split([len(s.shares), len(s.std), len(s.std)], -1)
        concentration = s.kind.concentration * s.shares * _bounded(shares).exp()
        return TableDistribution(s, concentration, s.std * mean, s.std * _bounded(log_std).exp())

    def sample(
        self, count: int, generator: torch.Generator, context: Tensor | None = None, antithetic: bool = False
    ) -> Samples:
        """Tables, see `TableDistribution.sample`; with a context (B, C) one for each of its rows, count = B."""
        return self(context).sample(count, generator, antithetic)

    def log_prob(self, samples: Samples, context: Tensor | None = None) -> Tensor:
        """Log density of each sample, (B,)."""
        return self(context).log_prob(samples)

    def entropy(self, context: Tensor | None = None) -> Tensor:
        """Differential entropy, 0-d, or (B,) with a context."""
        return self(context).entropy()

    def kl(self, other: Policy, context: Tensor | None = None) -> Tensor:
        """KL(self || other), exact, 0-d, or (B,) with a context."""
        return self(context).kl(other(context))

    def mean(self, context: Tensor | None = None) -> Table:
        """The mean table (of noise levels and scales, the mean logarithm); with a context (1, C), that of this row.

        Raises:
            ValueError: for a context of several rows, whose means are `expected` with a sample axis.
        """
        if context is not None and len(context) != 1:
            raise ValueError(f"context has {len(context)} rows, and one table comes of one: ask for `expected`")
        with torch.no_grad():
            return self.structure.table(self(context).expected.reshape(-1))

    def expected(self, context: Tensor) -> Samples:
        """The mean tables of a context (B, C), one for each row, to be run together."""
        with torch.no_grad():
            return Samples(self.structure, self(context).expected)

    def _embedded(self, context: Tensor | None) -> Tensor:
        shape = None if context is None else tuple(context.shape)
        if self.context is None or context is None or context.shape[1:] != (self.context_size,):
            needed = f"(B, {self.context_size})" if self.context_size else "None"
            raise ValueError(f"context has shape {shape}, needed {needed}: Policy's context_size says how long it is")
        return self.context(context.to(self.context.weight))


def _bounded(residual: Tensor) -> Tensor:
    return FARTHEST * (residual / FARTHEST).tanh()
