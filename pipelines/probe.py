"""Evaluating a pipeline's network through the pipeline itself: one borrowed iteration of its own denoising loop.

The pipeline prepares its conditioning, calls its network(s) and combines guidance with its own code; a stand-in
scheduler receives what the stock one would have received and ends the run there. So nothing here knows how any pipeline
guides, and nothing is written twice.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers.arguments import NetworkArguments

NETWORKS = ("unet", "transformer", "transformer_2", "controlnet")
Arguments = Mapping[str, Any]
Hear = Callable[[Any], Any]  # a network's output -> what its caller gets
Tap = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # a network's (sample, timestep) -> those it gets instead


class Evaluated(Exception):
    """Ends a borrowed run: carries what the pipeline handed to `scheduler.step`."""

    def __init__(self, output: Tensor) -> None:
        super().__init__("evaluated")
        self.output = output


class Seen(Exception):
    """Ends a borrowed run before its first network call: carries the sample and the timestep of that call."""

    def __init__(self, sample: Tensor, timestep: Tensor) -> None:
        super().__init__("seen")
        self.sample, self.timestep = sample, timestep


class ProbeScheduler:
    """What a pipeline sees of its scheduler during a borrowed run: the stock configuration, our timesteps.

    Args:
        stock: the pipeline's scheduler; it is not changed.
        timesteps: (I,) the loop's iterations.
    """

    order = 1
    init_noise_sigma = 1.0
    begin_index = 0
    step_index = 0

    def __init__(self, stock: Any, timesteps: Tensor) -> None:  # noqa: ANN401 - any scheduler of diffusers
        own = vars(type(self))  # a pipeline may read betas, alphas_cumprod and the like; covered methods are ours
        vars(self).update({name: value for name, value in vars(stock).items() if name not in own})
        self.config = stock.config
        self.timesteps = timesteps
        self.sigmas = torch.cat([timesteps / 1000, timesteps.new_zeros(1)])
        self.num_inference_steps = len(timesteps)
        self.unshifted = False
        self.mu: float | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Accepts whatever a pipeline asks for; the timesteps stay ours. Timesteps beside the sigmas that the stock
        scheduler shifts mean that the networks are told unshifted ones (CogView4, GLM-Image).
        """
        self.unshifted, self.mu = timesteps is not None and sigmas is not None, mu

    def set_begin_index(self, begin_index: int = 0) -> None: ...

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Image-to-image pipelines start here; the state is replaced anyway."""
        return original_samples

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: object = None,
        return_dict: bool = True,
    ) -> None:
        raise Evaluated(model_output)


@functools.cache
def _settled(kind: type, device: torch.device) -> type:
    """A pipeline's class that knows where it computes.

    The original finds it out by walking through all modules of all parts, several times a run: on a real pipeline that
    takes longer than all else that it does around its network.
    """
    return type(kind.__name__, (kind,), {"_execution_device": device, "__module__": kind.__module__})


@contextlib.contextmanager
def borrowed(pipe: Any, replaced: Mapping[str, object], device: torch.device) -> Iterator[None]:  # noqa: ANN401
    """Instance attributes for a while; past the pipeline's own `__setattr__`, which would rewrite its configuration."""
    own, kind = vars(pipe), type(pipe)
    values = {"_progress_bar_config": {"disable": True}, **replaced}
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    pipe.__class__ = _settled(kind, device)
    try:
        yield
    finally:
        pipe.__class__ = kind
        for name in values:
            del own[name]
        own.update(before)


def networks_of(pipe: Any) -> list[Any]:  # noqa: ANN401
    """The denoising networks (and ControlNets) of a pipeline.

    Raises:
        ValueError: when it has none.
    """
    networks = [pipe.components[name] for name in NETWORKS if pipe.components.get(name) is not None]
    if not networks:
        raise ValueError(f"{type(pipe).__name__} has none of {', '.join(NETWORKS)}: there is no network to evaluate")
    return networks


@contextlib.contextmanager
def tapped(networks: Sequence[Any], tap: Tap, hear: Hear | None = None) -> Iterator[None]:
    """Every call of a denoising network goes through `tap`, and what it returns to `hear`."""

    def hook(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = NetworkArguments(args, kwargs)
        listed = isinstance(call.state, list)
        if listed:
            call.state = torch.stack(call.state)
        if not isinstance(call.state, Tensor) or not isinstance(call.time, Tensor):
            raise ValueError(
                f"a network was called with a {type(call.state).__name__} as its state and a "
                f"{type(call.time).__name__} as its time, not with tensors: this pipeline cannot be evaluated here"
            )
        call.state, call.time = tap(call.state, call.time)
        if listed:
            call.state = list(call.state.unbind())
        return call.pair()

    handles = [network.register_forward_pre_hook(hook, with_kwargs=True) for network in networks]
    if hear is not None:
        heard = hear
        handles += [network.register_forward_hook(lambda _, args, output: heard(output)) for network in networks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Stage:
    """A pipeline that is evaluated, and what it would take long to ask it every time.

    Args:
        pipe: any pipeline of diffusers.
        networks: its denoising networks.
        device: where it computes.
        parameters: the names of its call's arguments.
        two: whether two networks share the timesteps.
    """

    pipe: Any
    networks: tuple[Any, ...]
    device: torch.device
    parameters: frozenset[str]
    two: bool


def stage(pipe: Any) -> Stage:  # noqa: ANN401
    """Looks at a pipeline once.

    Raises:
        ValueError: when it has no network.
    """
    parameters = frozenset(inspect.signature(type(pipe).__call__).parameters)
    two = pipe.components.get("transformer_2") is not None
    return Stage(pipe, tuple(networks_of(pipe)), torch.device(pipe._execution_device), parameters, two)


def evaluate(
    stage: Stage, arguments: Arguments, replaced: Mapping[str, object], tap: Tap, hear: Hear | None = None
) -> Tensor:
    """What the pipeline hands to `scheduler.step` in its first iteration, differentiable in what `tap` gives.

    Args:
        stage: the pipeline; it is left as it was.
        arguments: of its call.
        replaced: instance attributes for this run: `scheduler`, `encode_prompt`.
        tap: what the networks get.
        hear: what they return passes through it.

    Raises:
        ValueError: when the pipeline ends without an iteration.
    """
    grad = torch.is_grad_enabled()

    def graded(sample: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        torch.set_grad_enabled(grad)  # pipelines run under no_grad, whose end restores the caller's mode
        return tap(sample, timestep)

    with borrowed(stage.pipe, replaced, stage.device), tapped(stage.networks, graded, hear):
        try:
            stage.pipe(**arguments)
        except Evaluated as done:
            return done.output
    raise ValueError(
        f"{type(stage.pipe).__name__} made no denoising iteration when asked for one; for image-to-image and "
        "inpainting give the text-to-image pipeline of the same components: a solver is the same for all of them"
    )
