"""A tiny PRX in pixel space: its loop makes a velocity of the network's denoised picture and its own latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .list_and_packed_pipelines import flow, randomised
from .tiny_pipelines import diffusers


def prx_pixel(kind: Any = None) -> Any:  # noqa: ANN401
    network = diffusers.PRXTransformer2DModel(
        patch_size=4, in_channels=3, context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=1,
        axes_dim=[4, 4],
    )  # fmt: skip
    pipe = (kind or diffusers.PRXPixelPipeline)(
        transformer=randomised(network), scheduler=flow(), text_encoder=None, tokenizer=None, default_sample_size=16
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int, guidance: float) -> dict[str, Any]:
    def texts(seed: int) -> Tensor:
        return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(seed))[:batch]

    return {
        "prompt_embeds": texts(1), "negative_prompt_embeds": texts(2), "guidance_scale": guidance, "height": 16,
        "width": 16, "use_resolution_binning": False, "output_type": "latent", "return_dict": False,
        "prompt_attention_mask": torch.ones(batch, 5), "negative_prompt_attention_mask": torch.ones(batch, 5),
        "generator": [torch.Generator().manual_seed(i) for i in range(batch)],
    }  # fmt: skip
