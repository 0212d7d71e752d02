"""Pipelines from a folder or the hub: safetensors only, no code of the repository executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..denoisers.edm_checkpoint import CONFIG as EDM_CONFIG
from ..denoisers.edm_checkpoint import load_edm
from ..denoisers.protocol import Model
from ..formats.files import user_path
from .denoiser import from_pipeline
from .options import ModelOptions

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

def load_pipeline(source: str | Path, options: ModelOptions = ModelOptions()) -> Any:  # noqa: ANN401, B008 - frozen
    """A diffusers pipeline, its class as its `model_index.json` says, in evaluation mode, without a progress bar.

    Args:
        source: a folder that `save_pretrained` wrote, or a hub id such as `black-forest-labs/FLUX.1-dev`.
        options: those of loading and placement; others are not looked at.

    Raises:
        ValueError: when it cannot be loaded; the message says what was tried and what to do.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    source = user_path(source) if str(source).startswith("~") else source
    _check_source(source)
    if options.device_map is not None and (options.offload != "none" or options.device is not None):
        raise ValueError("device_map places every part itself: leave device and offload out")
    how: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": options.local_only}
    how |= {"variant": options.variant, "revision": options.revision, "device_map": options.device_map}
    if options.network_dtype is not None:
        how["torch_dtype"] = DTYPES[options.network_dtype]
    try:
        pipe = DiffusionPipeline.from_pretrained(str(source), **{k: v for k, v in how.items() if v is not None})
    except (OSError, ValueError, NotImplementedError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{source} could not be loaded as a pipeline: {first.strip()}; it must be a folder or hub repository with "
            "a model_index.json and .safetensors weights"
            + ("" if Path(source).exists() else " (gated models need `hf auth login`; offline, give a local folder)")
        ) from error
    pipe.set_progress_bar_config(disable=True)
    _place(pipe, options)
    return pipe


def _check_source(source: str | Path) -> None:
    path = Path(source)
    if path.suffix == ".py" and path.is_file():
        raise ValueError(f"{source} is a file of functions: name the one that returns the model, {source}:function")
    if path.is_file():
        raise ValueError(
            f"{source} is a single file: load it with from_single_file of its pipeline class, save_pretrained it "
            "to a folder, and give that folder"
        )
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise ValueError(f"{source} has no model_index.json: give the folder that save_pretrained wrote")


def _place(pipe: Any, options: ModelOptions) -> None:  # noqa: ANN401
    if options.device_map is not None:
        return
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.offload == "none":
        pipe.to(device)
    elif torch.device(device).type == "cpu":
        text = f"offload = {options.offload!r} keeps weights on the CPU for an accelerator, but device is 'cpu'"
        raise ValueError(text)
    elif options.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif options.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level")


def load_model(source: str | Path, options: ModelOptions = ModelOptions()) -> Model:  # noqa: B008 - frozen
    """`from_pipeline(load_pipeline(source), ...)`, named after its source; or a folder that `save_edm` wrote.

    Raises:
        ValueError: for what cannot be loaded, or options that it has no use for.
    """
    place = user_path(source)
    if (place / EDM_CONFIG).exists():
        return _edm(place, options)
    height, width = options.size
    return from_pipeline(
        load_pipeline(source, options),
        prompts=options.texts,
        negative_prompt=options.negative_prompt,
        guidance=options.guidance,
        height=height,
        width=width,
        class_labels=list(options.labels) or None,
        num_frames=options.num_frames,
        options=options.options,
        name=str(source),
    )


def _edm(source: Path, options: ModelOptions) -> Model:
    known = ("labels", "device", "network_dtype", "local_only", "accelerate")
    useless = [name for name in options.chosen() if name not in known]
    if useless:
        raise ValueError(f"{source} is an EDM network: it has no {useless[0]}, only class labels")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, labels = load_edm(source, device=device, dtype=DTYPES[options.network_dtype or "float32"]), options.labels
    if not labels:
        return model
    if model.seed_rows is None:
        raise ValueError(f"{source} is unconditional: leave the class labels out")
    return dataclasses.replace(model, seed_rows=lambda seeds: torch.tensor([labels[s % len(labels)] for s in seeds]))
