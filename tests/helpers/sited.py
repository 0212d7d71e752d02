"""An accelerator on a network alone, whose calls are told by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

from epd.accelerators.moment import Moment
from epd.accelerators.site import Site, Under


def moment(step: int, sigma: float = 1.0, steps: int = 9, **changes: Any) -> Moment:  # noqa: ANN401
    """A call at the state of one sample."""
    told = {"ask": 0, "slots": (0,), "branch": 0, "copies": 1, "samples": 1, "sigma": (sigma,), "state": True}
    return Moment(step, steps, **{**told, **changes})


class Sited:
    """Calls of a network with one accelerator; `share` of the blocks in the last one."""

    def __init__(self, network: Module, accelerator: Any) -> None:  # noqa: ANN401
        self.network, self._under = network, Under()
        self.site = Site({"network": network}, None, self._under)
        self.live = accelerator.attach(self.site)
        self.live.begin()

    def __call__(self, now: Moment, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        self.live.before(now)
        self._under.now = now
        try:
            return self.network(*args, **kwargs)[0]
        finally:
            self._under.now = None

    @property
    def share(self) -> float:
        return self._under.work.blocks
