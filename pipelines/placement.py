"""How a pipeline's networks evaluate the points of a fan. It is the pipeline's loop that decides, so each one is asked.

`batched` needs the hook and a loop that only copies the state; `serial` needs the hook; `bare` needs nothing.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

from diffusers.models.cache_utils import CacheMixin
from torch.nn import Module

from ..denoisers.arguments import second_state, takes_lists
from ..denoisers.hooks import attached
from .conditions import BY_TIME, has_effect
from .layout import Placement
from .probe import NETWORKS

Pipe = Any  # any pipeline of diffusers
FAN = "fan"  # the change's name among those that are attached to a network
REGISTRY = "_diffusers_hook"  # where diffusers keeps the hooks of a module
# Pipelines whose loops make another output of the network's and their own latents before the step. (Those of Sana
COMBINING = frozenset((
    "Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline", "PRXPixelPipeline", "SanaSprintPipeline",
    "SanaSprintImg2ImgPipeline", "StableDiffusionLatentUpscalePipeline", "LTX2DFRPipeline",
    "LTX2DFRTemporalRefinePipeline", "RFD4ProteinaPipeline",
))  # fmt: skip
# Networks whose caches somebody tells the points of a fan apart.
FAN_AWARE: weakref.WeakSet[Module] = weakref.WeakSet()
ONE_BY_ONE = "the points of a fan are evaluated one after another: "


def networks_in(pipe: Pipe) -> dict[str, Module]:
    """The denoising networks and ControlNets of a pipeline, by the names of its components."""
    parts = {name: pipe.components.get(name) for name in NETWORKS}
    return {name: part for name, part in parts.items() if part is not None}


def placed(pipe: Pipe, parallel: bool, arguments: Mapping[str, Any] | None = None) -> tuple[Placement, str]:
    """Where the next run of this pipeline evaluates the points of a fan, and why it is not in one call.

    Args:
        pipe: any pipeline whose scheduler is learned, whether it was enabled itself or shares an enabled one's parts.
        parallel: the points of a fan in one call, if this pipeline can.
        arguments: of the run, by the names of the pipeline's parameters; none: at their defaults.
    """
    networks = networks_in(pipe)
    mixing = mixes(pipe)
    if mixing:
        return "bare", mixing
    if not networks or not all(attached(network, FAN) for network in networks.values()):
        return "bare", ONE_BY_ONE + "epd.enable was not called on this pipeline since its networks were put in"
    stuck = _keeps_rows(pipe, networks) or _guides_by_time(arguments or {})
    return ("batched" if parallel and not stuck else "serial"), stuck if parallel else ""


def mixes(pipe: Pipe) -> str:
    """Why a pipeline's loop cannot carry a fan at all; empty when it can."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    if "mask_image" in accepted:
        return ONE_BY_ONE + "inpainting blends the latents between calls"
    if "image" in accepted and "strength" not in accepted and pipe.components.get("controlnet") is None:
        return ONE_BY_ONE + "an image stands beside the latents in every call"
    for name, network in networks_in(pipe).items():
        if name != "controlnet" and _takes_more(network.config):
            return ONE_BY_ONE + "the network takes more than the latents"
    beside = not_followed(pipe)
    return ONE_BY_ONE + beside if beside else ""


def not_followed(pipe: Pipe) -> str:
    """What a pipeline does with its state or time that is not seen at its network; empty when there is nothing."""
    networks = networks_in(pipe)
    if any(kind.__name__ in COMBINING for kind in type(pipe).__mro__):
        return "the pipeline combines its latents with what the network says of them"
    kinds = {type(network) for network in networks.values()}
    for name, part in pipe.components.items():
        if type(part) in kinds and name not in networks:
            return f"the pipeline asks a second network, {name!r}, in every call"
    for network in networks.values():
        second = second_state(network.forward)
        if second and not (second == "timestep_r" and network.config.get("use_meanflow") is False):
            return f"the network takes {second!r} beside its state and time"
    return ""


def _takes_more(config: Any) -> bool:  # noqa: ANN401 - a network's configuration
    """Masks or images beside the latents; not the channels of packed patches, which the network unpacks itself."""
    inside, outside, patch = (config.get(key) for key in ("in_channels", "out_channels", "patch_size"))
    if not isinstance(inside, int) or not isinstance(outside, int):
        return False
    return inside > outside and not (isinstance(patch, int) and inside == outside * patch**2)


def _keeps_rows(pipe: Pipe, networks: dict[str, Module]) -> str:
    """Why the number of rows may not change from call to call; empty when it may."""
    for network in networks.values():
        if caches(network) and network not in FAN_AWARE:
            return ONE_BY_ONE + "a cache that is active in the network keeps rows from call to call"
        if takes_lists(network.forward) and (vars(pipe).get("_guidance_scale") or 0) > 0:
            return ONE_BY_ONE + "guidance counts the entries of the network's list"
    guider = pipe.components.get("guider")  # of modular pipelines
    if guider is not None and vars(guider).get("adaptive_projected_guidance_momentum"):
        return ONE_BY_ONE + "the momentum of the guidance keeps rows from call to call"
    return ""


def _guides_by_time(arguments: Mapping[str, Any]) -> str:
    """Which option makes the guidance of a call depend on its time; empty when none does."""
    in_force = [name for name, neutral in BY_TIME.items() if has_effect(arguments.get(name), neutral)]
    if not in_force:
        return ""
    return ONE_BY_ONE + f"{in_force[0]} = {arguments[in_force[0]]!r} guides by the time, which differs between them"


def caches(network: Module) -> bool:
    """Whether diffusers' caches are on, by `enable_cache` or applied to the network directly."""
    if any(isinstance(part, CacheMixin) and part.is_cache_enabled for part in (network, *network.children())):
        return True
    registries = [vars(part)[REGISTRY] for part in network.modules() if REGISTRY in vars(part)]
    return any(hook._is_stateful for registry in registries for hook in registry.hooks.values())
