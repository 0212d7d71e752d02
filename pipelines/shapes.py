"""`shapes`: the embedded text-to-image network, in diffusers' stock pipeline and as a model whose seeds are prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from ..denoisers import shapes_world
from ..denoisers.digits import ASSETS
from .denoiser import PipelineModel, from_pipeline

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

MODEL_FOLDER = ASSETS / "shapes"


def shapes_pipeline() -> StableDiffusion3Pipeline:
    """The embedded network in diffusers' stock pipeline, in float32: `pipe("a red cross above a blue square",
    guidance_scale=3.0, max_sequence_length=0).images`.

    It has no third text encoder, in whose place the pipeline puts tokens of zeros, 256 without `max_sequence_length=0`:
    the network never saw them. Trained by `experiments/train_shapes.py`.
    """
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

    loaded = StableDiffusion3Pipeline.from_pretrained(
        MODEL_FOLDER, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    pipe = cast("StableDiffusion3Pipeline", loaded).to(torch.float32)  # the files hold float16
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def shapes(prompts: Sequence[str] = (), guidance: float = 1.0) -> PipelineModel:
    """The embedded network as a `Model` of latents (3, 16, 16); sigma runs from 0.001 to 1 on the flow path.

    Args:
        prompts: dealt out to seeds; none: a training prompt for each seed, `shapes_world.prompt_of`.
        guidance: scale; up to 1 it is plain conditioning, as in the pipeline.

    Raises:
        ValueError: for a prompt that is none of this world.
    """
    for prompt in prompts:
        shapes_world.parse(prompt)
    texts, options = prompts or shapes_world.prompts("train"), {"max_sequence_length": 0}
    model = from_pipeline(shapes_pipeline(), texts, guidance=guidance, options=options, name="shapes")
    return model if prompts else replace(model, seed_conditions=_training_prompts)


def _training_prompts(seeds: Sequence[int]) -> list[int]:
    training = shapes_world.prompts("train")
    return [training.index(shapes_world.prompt_of(seed)) for seed in seeds]
