"""A scheduler of ours with any stock scheduler's configuration: the same noise levels for the same networks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .configs import FAMILIES, OBEYED, SCALED_NOISE, completed, parameters, stock_of
from .frames import Frame, frame_of


class StockConfigured(SchedulerMixin, ConfigMixin):
    """What a scheduler knows from its configuration alone. `EPDScheduler` is the one class of this kind.

    Its `config` has the parameters of `EPDScheduler`, and those of the stock class `stock_class` that it was made from:
    they alone say what its noise levels are.
    """

    _compatibles = list(FAMILIES)
    _said: frozenset[str] = frozenset()

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,  # noqa: ANN401 - ConfigMixin's signature
    ) -> Any:  # noqa: ANN401
        """From any stock scheduler's configuration, `rule=`, `table=` and the like given beside it."""
        if config is None:
            raise ValueError("config is None: give a scheduler's config")
        values = completed(config)
        own = parameters(values["stock_class"]) if values["stock_class"] else kwargs
        for key in OBEYED & kwargs.keys() - own.keys():
            raise ValueError(
                f"{key} = {kwargs[key]!r} means nothing to {values['stock_class']}, whose configuration this is: make "
                "a stock scheduler that has it from this configuration first"
            )
        if kwargs.get("rule", "table") != "table":
            values.pop("table", None)
        made = super().from_config(values, return_unused_kwargs=return_unused_kwargs, **kwargs)
        frame_of(made[0] if return_unused_kwargs else made)  # says what is not supported
        return made

    @functools.cached_property
    def frame(self) -> Frame:
        """Path and network parameterisation."""
        return frame_of(self)

    @functools.cached_property
    def _stock(self) -> Any:  # noqa: ANN401 - any scheduler of diffusers
        return stock_of(self.config).build()

    @property
    def betas(self) -> Tensor:
        """(T,) as the stock scheduler has them, as the other three; no attribute where it has none."""
        return self._stock.betas

    @property
    def alphas(self) -> Tensor:
        """(T,) 1 - betas."""
        return self._stock.alphas

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) the product of the alphas, or what the stock scheduler makes of it."""
        return self._stock.alphas_cumprod

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """() behind the last step of DDIM's kind."""
        return self._stock.final_alpha_cumprod

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    @functools.cached_property  # asked in every step; a configuration does not change
    def _unit_variance(self) -> bool:
        """Whether the first latents are unit noise."""
        stated, stock = self.config["unit_variance"], stock_of(self.config)
        scaled = stock.name in SCALED_NOISE and stock.config.get("timestep_spacing") != "leading"
        return bool(stated if stated is not None else self.config["table"] is None and not scaled)

    def _say(self, text: str) -> None:
        if text and self.first_time(text):
            warnings.warn(text, stacklevel=3)

    def first_time(self, text: str) -> bool:
        """Whether this is said for the first time; every warning is given once per scheduler."""
        new = text not in self._said
        self._said |= {text}
        return new
