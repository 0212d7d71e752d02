"""Which blocks, noise levels and times the learning of feedback is about."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..accelerators.accelerate import networks_of
from ..accelerators.feedback_block import Loop, default_loop
from ..accelerators.ilf import TIMES, blocks_of
from ..denoisers.protocol import Model
from ..solvers.questions import unannounced
from ..solvers.registry import Ends, make_sigmas
from .feedback_config import FeedbackConfig


def loop_of(model: Model, config: FeedbackConfig) -> Loop:
    """The loop that a config asks for in a model's network.

    Raises:
        ValueError: for a network that cannot have it, or a model of several.
    """
    networks = networks_of(model)
    if len(networks) != 1:
        raise ValueError(f"{', '.join(networks)} share the work: feedback is learned in one network")
    network = next(iter(networks.values()))
    depth = len(blocks_of(network))
    begin, count = default_loop(depth)
    return Loop(
        type(network).__name__, depth, begin if config.begin is None else config.begin,
        count if config.count is None else config.count, config.steps, config.feedback or tuple(range(config.steps)),
    )  # fmt: skip


def sigmas_of(model: Model, config: FeedbackConfig, steps: int) -> Tensor:
    """(N+1,) noise levels of so many steps."""
    name, number = config.of_schedule(model.path)
    return make_sigmas(name, steps, Ends.of(model, config.sigma_min, config.sigma_max), number)


def times_at(model: Model, network: nn.Module, sigmas: Tensor) -> Tensor:
    """(N,) float32: what the network is told at these noise levels."""
    time_of, told = TIMES[type(network).__name__], list[Tensor]()
    if time_of.embedder:
        place = network.get_submodule(time_of.embedder)
    else:
        place = blocks_of(network).modules[0]

    def look(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        value = args[0] if time_of.embedder and args else kwargs["timestep"]
        assert isinstance(value, Tensor)
        told.append(value.detach().float().flatten()[:1].cpu())

    handle, denoiser = place.register_forward_pre_hook(look, with_kwargs=True), model.for_seeds([0])
    try:
        with torch.no_grad(), unannounced():
            for sigma in sigmas:
                denoiser(torch.zeros(1, *model.shape, device=model.device), sigma.to(model.device))
    finally:
        handle.remove()
    return torch.cat(told[:: max(1, len(told) // len(sigmas))])
