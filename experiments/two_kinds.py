"""A world whose samples differ on purpose: to half of them every path is straight, so that one call is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.fingerprint import Dependencies
from ..denoisers.forwarding import Forwarding
from ..denoisers.mixture import GaussianMixture

KINDS = ("one picture", "a cloud of them")


@dataclass(frozen=True, eq=False)
class TwoKinds(Forwarding):
    """Even seeds stand for a class of one picture (1, 4, 4), odd ones for a Gaussian cloud; exact, without a network.

    The slope (x - D) / sigma towards one picture is the same at all noise levels; towards a cloud of standard
    deviation s the state falls with sqrt(s^2 + sigma^2).
    """

    model: GaussianMixture

    def for_seeds(self, seeds: Sequence[int]) -> GaussianMixture:
        """The mixture, bound to their classes."""
        return self.model.bind(torch.tensor([seed % len(KINDS) for seed in seeds]))

    def prompts_of(self, seeds: Sequence[int]) -> list[str]:
        """What their classes are called."""
        return [KINDS[seed % len(KINDS)] for seed in seeds]

    def decode(self, x: Tensor) -> Tensor:
        """As the mixture does."""
        return self.model.decode(x)

    def depends_on(self) -> Dependencies:
        """The mixture's constants."""
        return self.model.depends_on()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.model(x, sigma)


def two_kinds() -> TwoKinds:
    """The world."""
    means = torch.stack([torch.full((1, 4, 4), 0.7), torch.full((1, 4, 4), -0.2)])
    mixture = GaussianMixture(
        means, [1e-3, 0.5], labels=torch.arange(len(KINDS)), sigma_min=0.02, sigma_max=20.0, name="two-kinds"
    )
    return TwoKinds(mixture)
