"""Models without a network, such as exact mixtures, as models that have one: what acts on rows can stand before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .fingerprint import Dependencies, Transparent
from .forwarding import Forwarding
from .protocol import Denoiser, Model, rows_per_condition


class SeededNetwork(nn.Module):
    """D(x, sigma) of a model's samples, row by row: each is told its noise level and its seed."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model

    def forward(self, sample: Tensor, timestep: Tensor, seeds: Tensor | None = None) -> Tensor:
        """(R, *S) of rows (R, *S), noise levels (R,) and seeds (R,); without seeds as the model is unbound."""
        bound: Denoiser = self._model if seeds is None else self._model.for_seeds(seeds.tolist())
        return bound(sample, timestep)


@dataclass(frozen=True, eq=False)
class AsNetwork(Forwarding):
    """A model whose every evaluation is a call of a network with a row for each state, to the same bits.

    Args:
        model: whose `for_seeds` binds quickly, as it does in every call.
        seeds: of the bound samples; None: unbound.
    """

    model: Model
    seeds: tuple[int, ...] | None = None
    network: SeededNetwork | None = None
    _own: SeededNetwork = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_own", SeededNetwork(self.model) if self.network is None else self.network)

    def for_seeds(self, seeds: Sequence[int]) -> AsNetwork:
        """Bound to the conditions that these seeds stand for."""
        return AsNetwork(self.model, tuple(int(seed) for seed in seeds), self._own)

    def decode(self, x: Tensor) -> Tensor:
        """As the model does."""
        return self.model.decode(x)

    def depends_on(self) -> Dependencies:
        """What the model depends on, with the network that stands for it."""
        whole = self.model if self.seeds is None else self.model.for_seeds(self.seeds)
        told = whole.depends_on() if isinstance(whole, Transparent) else None
        told = Dependencies() if told is None else told
        return Dependencies((self._own, *told.networks), told.rows, told.settings)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
        seeds = None
        if self.seeds is not None:
            repeat = rows_per_condition(len(x), len(self.seeds))
            seeds = torch.tensor(self.seeds).repeat_interleave(repeat)
        return self._own(x, sigma.expand(len(x)), seeds=seeds)
