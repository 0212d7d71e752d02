"""Pipelines from a folder or the hub: safetensors only, no code of the repository executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..denoisers.edm_checkpoint import CONFIG as EDM_CONFIG
from ..denoisers.edm_checkpoint import load_edm
from ..denoisers.protocol import Model
from .denoiser import from_pipeline

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
Offload = Literal["none", "model", "sequential", "group"]


@dataclasses.dataclass(frozen=True)
class Load:
    """How a pipeline is loaded and where it computes.

    Args:
        dtype: `float32`, `float16`, `bfloat16`, or none: as it was saved.
        variant: of the weight files, such as `fp16`.
        revision: branch, tag or commit on the hub.
        device: `cpu`, `cuda`, `cuda:1`, ...; none: CUDA where there is one.
        device_map: diffusers' placement of the parts over several devices, such as `balanced`; without device, offload.
        offload: `model`, `sequential` or `group`: what waits on the CPU while it is not needed; needs an accelerator.
        local_only: never ask the hub.
    """

    dtype: str | None = None
    variant: str | None = None
    revision: str | None = None
    device: str | None = None
    device_map: str | None = None
    offload: Offload = "none"
    local_only: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype = {self.dtype!r} is unknown: give one of {', '.join(DTYPES)}")
        if self.offload not in ("none", "model", "sequential", "group"):
            raise ValueError(f"offload = {self.offload!r} is unknown: give none, model, sequential or group")
        if self.device_map is not None and (self.offload != "none" or self.device is not None):
            raise ValueError("device_map places every part itself: leave device and offload out")


def load_pipeline(source: str | Path, load: Load = Load()) -> Any:  # noqa: ANN401, B008 - any pipeline; Load is frozen
    """A diffusers pipeline, its class as its `model_index.json` says, in evaluation mode, without a progress bar.

    Args:
        source: a folder that `save_pretrained` wrote, or a hub id such as `black-forest-labs/FLUX.1-dev`.
        load: dtype, variant, revision, placement.

    Raises:
        ValueError: when it cannot be loaded; the message says what was tried and what to do.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    _check_source(source)
    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": load.local_only}
    options |= {"variant": load.variant, "revision": load.revision, "device_map": load.device_map}
    if load.dtype is not None:
        options["torch_dtype"] = DTYPES[load.dtype]
    try:
        pipe = DiffusionPipeline.from_pretrained(str(source), **{k: v for k, v in options.items() if v is not None})
    except (OSError, ValueError, NotImplementedError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{source} could not be loaded as a pipeline: {first.strip()}; it must be a folder or hub repository with "
            "a model_index.json and .safetensors weights"
            + ("" if Path(source).exists() else " (gated models need `hf auth login`; offline, give a local folder)")
        ) from error
    pipe.set_progress_bar_config(disable=True)
    _place(pipe, load)
    return pipe


def _check_source(source: str | Path) -> None:
    path = Path(source)
    if path.is_file():
        raise ValueError(
            f"{source} is a single file: load it with from_single_file of its pipeline class, save_pretrained it "
            "to a folder, and give that folder"
        )
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise ValueError(f"{source} has no model_index.json: give the folder that save_pretrained wrote")


def _place(pipe: Any, load: Load) -> None:  # noqa: ANN401
    if load.device_map is not None:
        return
    device = load.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if load.offload == "none":
        pipe.to(device)
    elif torch.device(device).type == "cpu":
        raise ValueError(f"offload = {load.offload!r} keeps weights on the CPU for an accelerator, but device is 'cpu'")
    elif load.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif load.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level")


def load_model(
    source: str | Path,
    prompts: Sequence[str] | None = None,
    negative_prompt: str | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    class_labels: Sequence[int] | None = None,
    num_frames: int | None = None,
    embeds: Mapping[str, Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
    load: Load = Load(),  # noqa: B008 - frozen
) -> Model:
    """`from_pipeline(load_pipeline(source, load), ...)`, named after its source; or a folder that `save_edm` wrote.

    Raises:
        ValueError: for what cannot be loaded, or options that it has no use for.
    """
    if (Path(source) / EDM_CONFIG).is_file():
        given = {"prompts": prompts, "negative_prompt": negative_prompt, "guidance": guidance, "height": height}
        given |= {"width": width, "num_frames": num_frames, "embeds": embeds, "options": options}
        return _edm(source, class_labels, [name for name, value in given.items() if value is not None], load)
    return from_pipeline(
        load_pipeline(source, load),
        prompts=prompts,
        negative_prompt=negative_prompt,
        guidance=guidance,
        height=height,
        width=width,
        class_labels=class_labels,
        num_frames=num_frames,
        embeds=embeds,
        options=options,
        name=str(source),
    )


def _edm(source: str | Path, labels: Sequence[int] | None, useless: list[str], load: Load) -> Model:
    if useless:
        raise ValueError(f"{source} is an EDM network: it has no {useless[0]}, only class labels")
    device = load.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_edm(source, device=device, dtype=DTYPES[load.dtype or "float32"])
    if labels is None:
        return model
    if model.seed_rows is None:
        raise ValueError(f"{source} is unconditional: leave the class labels out")
    return dataclasses.replace(model, seed_rows=lambda seeds: torch.tensor([labels[s % len(labels)] for s in seeds]))


def read_prompts(path: str | Path) -> list[str]:
    """One prompt a line, blank lines left out.

    Raises:
        ValueError: for a file that is not UTF-8 text or has no prompt.
    """
    from ..formats.files import read_text

    prompts = [line.strip() for line in read_text(Path(path), ValueError).splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompt: write one a line")
    return prompts
