"""What stands before a model and says of itself what the model says."""

from __future__ import annotations

from torch import Tensor

from .protocol import Model, Path


class Forwarding:
    """The members of `Model` that are those of `self.model`."""

    model: Model

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def path(self) -> Path:
        return self.model.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.model.shape

    @property
    def sigma_min(self) -> float:
        return self.model.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.model.sigma_max

    @property
    def guidance(self) -> float:
        return self.model.guidance

    @property
    def alphas_cumprod(self) -> Tensor | None:
        return self.model.alphas_cumprod

    @property
    def device(self) -> str:
        return self.model.device
