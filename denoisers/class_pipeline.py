"""Class-conditional networks of this project in diffusers' stock pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline

NULL = 1000  # the number by which the pipeline asks for the unconditional class


def class_pipeline(net: DiTTransformer2DModel, folder: Path, vae: AutoencoderKL, names: Sequence[str]) -> DiTPipeline:
    """A `DiTPipeline` of a network whose last class is the unconditional one, and the DDIM scheduler of its folder.

    The pipeline writes the unconditional class as 1000, so the label tables of a copy are grown to 1,001 rows whose
    unused ones are the unconditional class.

    Args:
        names: of the other classes.
    """
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = cast(Any, DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True))
    return DiTPipeline(
        transformer=_grown(net, len(names)), vae=vae, scheduler=scheduler, id2label=dict(enumerate(names))
    )


def _grown(net: DiTTransformer2DModel, classes: int) -> DiTTransformer2DModel:
    grown = cast("DiTTransformer2DModel", type(net).from_config({**net.config, "num_embeds_ada_norm": NULL}))
    state = dict(net.state_dict())
    for name, value in state.items():
        if name.endswith("embedding_table.weight"):
            state[name] = torch.cat([value[:-1], value[-1:].expand(NULL + 1 - classes, -1)])
    grown.load_state_dict(state)
    return grown.eval().requires_grad_(False)
