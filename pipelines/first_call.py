"""What a pipeline's first network call says about it, without making that call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers.arguments import NetworkArguments, takes_lists
from .conditions import Request
from .configs import completed, live_config
from .frames import Frame, Packing, native_time, told_unshifted
from .grids import shift_of
from .placement import not_followed
from .probe import ProbeScheduler, Seen, Stage, evaluate
from .prompts import Encodings, Recorder


@dataclass(frozen=True)
class FirstCall:
    """Of the pipeline's first network.

    Args:
        sample, timestep: as `Seen`.
        beside: its other arguments that are tensors or numbers, by name and place in lists and dictionaries.
        unshifted: whether the networks are told times without the shift of the noise levels.
        mu: of the shift, as the pipeline computed it.
    """

    sample: Tensor
    timestep: Tensor
    beside: Mapping[str, Any]
    unshifted: bool
    mu: float | None


def first_call(
    setting: Stage, request: Request, index: Sequence[int], t: float, encode: object, seed: int
) -> FirstCall:
    """What the pipeline hands to its network at this timestep, with noise of this seed."""
    beside: dict[str, Any] = {}

    def look(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def note(name: str, value: Any) -> Any:  # noqa: ANN401 - any argument
            beside.update(_leaves({name or f"argument {len(beside) + 2}": value}))
            return value

        NetworkArguments(args, kwargs).change_conditioning(note)

    def tap(sample: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        raise Seen(sample.detach(), timestep.detach())

    arguments = request.arguments(index)
    if "generator" in setting.parameters:
        arguments["generator"] = torch.Generator().manual_seed(seed)
    scheduler = ProbeScheduler(setting.pipe.scheduler, torch.tensor([t], device=setting.device))
    replaced = {"scheduler": scheduler, **({} if encode is None else {"encode_prompt": encode})}
    handles = [network.register_forward_pre_hook(look, with_kwargs=True) for network in setting.networks]
    try:
        evaluate(setting, arguments, replaced, tap)
    except Seen as seen:
        return FirstCall(seen.sample, seen.timestep, beside, scheduler.unshifted, scheduler.mu)
    finally:
        for handle in handles:
            handle.remove()
    raise AssertionError("evaluate either raises or reaches the tap")


def _leaves(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401 - any argument
    """The tensors and numbers in an argument, with detached copies of the tensors."""
    if isinstance(value, Tensor):
        return {name: value.detach().clone()}
    if isinstance(value, (int, float)):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {n: leaf for key, part in parts for n, leaf in _leaves(part, f"{name}.{key}" if name else str(key)).items()}


def encode(setting: Stage, request: Request, index: Sequence[int]) -> list[Any]:
    """What the pipeline's `encode_prompt` gives for samples with these conditions."""
    recorder = Recorder(setting.pipe.encode_prompt)
    first_call(setting, request, index, 1.0, recorder, 0)
    return recorder.results


def require_followed(pipe: Any) -> None:  # noqa: ANN401 - any pipeline of diffusers
    """Refuses a pipeline that evaluates more than one network at one state and one time.

    Raises:
        ValueError: naming what else there is.
    """
    beside = not_followed(pipe)
    if beside:
        raise ValueError(f"{type(pipe).__name__} cannot be evaluated at single noise levels: {beside}")


def network_input(
    setting: Stage, request: Request, frame: Frame, encodings: Encodings | None
) -> tuple[Tensor, Frame, str]:
    """One sample as the network gets it, the frame with the timesteps of this pipeline, and what its network is told.

    Raises:
        ValueError: for a pipeline whose state, time or guidance cannot be followed.
    """
    kind = type(setting.pipe).__name__
    times = (frame.num_timesteps / 4, frame.num_timesteps / 2)  # exact in every floating type, at T = 1000 and 1024

    def look(t: float, seed: int) -> FirstCall:
        replay = None if encodings is None else encodings.rows([0, 0])
        return first_call(setting, request, [0, 0], t, replay, seed)

    early, late = (look(t, 0) for t in times)
    sample, copies = early.sample, len(early.sample) // 2
    if len(sample) % 2 or any(not part.equal(sample[:2]) for part in sample.chunk(max(copies, 1))):
        raise ValueError(
            f"{kind} calls its network with {len(sample)} rows for 2 samples, which are not copies of them: its "
            "guidance cannot be followed"
        )
    if any(bool((call.timestep != call.timestep.flatten()[0]).any()) for call in (early, late)):
        raise ValueError(f"{kind} tells its network several timesteps in one call: not supported")
    _require_alone(kind, early, late, "time")
    _require_alone(kind, early, look(times[0], 1), "state")
    read = [float(call.timestep.flatten()[0]) for call in (early, late)]
    dtype = early.timestep.dtype
    dtype = sample.dtype if dtype.is_floating_point and sample.dtype != dtype else dtype
    if early.unshifted and frame.path == "flow":
        frame = told_unshifted(frame, shift_of(completed(live_config(setting.pipe.scheduler)), early.mu))
    sample = sample.squeeze(2) if takes_lists(setting.networks[0].forward) else sample  # entries have a frame each
    return sample[:1], frame, native_time((read[0], read[1]), times, frame.num_timesteps, dtype)


def _require_alone(kind: str, one: FirstCall, other: FirstCall, what: str) -> None:
    """Refuses a network with another argument that changes with the time, or with the state."""
    for name, value in one.beside.items():
        if name in other.beside and not _same(value, other.beside[name]):
            raise ValueError(
                f"{kind} hands its network {name!r}, which changes with the {what} as its main argument does: only one "
                f"{what} can be followed, so this pipeline cannot be evaluated here"
            )


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - tensors or numbers
    return bool(torch.equal(one, other)) if isinstance(one, Tensor) else one == other


def state_shape(pipe: Any, sample: Tensor) -> tuple[int, ...]:  # noqa: ANN401
    """The network's input without what inpainting and the like put beside the state."""
    vae = pipe.components.get("vae")
    latent = None if vae is None else vae.config.get("latent_channels") or vae.config.get("z_dim")
    channels = sample.shape[1] if latent is None or sample.ndim < 4 else min(int(latent), sample.shape[1])
    return (channels, *sample.shape[2:])


def packing_of(pipe: Any, sample: Tensor, request: Request) -> Packing | None:  # noqa: ANN401
    """Tokens that are the 2 x 2 patches of the requested picture are unpacked; any others are the state themselves."""
    factor, size = vars(pipe).get("vae_scale_factor"), vars(pipe).get("default_sample_size")
    if sample.ndim != 3 or factor is None:
        return None
    sides = [request.shared.get(side) or (size or 0) * factor for side in ("height", "width")]
    height, width = (2 * (int(side) // (2 * factor)) for side in sides)
    fits = sample.shape[1] * 4 == height * width and sample.shape[2] % 4 == 0
    return Packing(height, width) if fits else None
