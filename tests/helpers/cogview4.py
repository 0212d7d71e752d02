"""A tiny CogView4: its pipeline passes timesteps and sigmas together, and its texts are embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tiny_pipelines import diffusers

COGVIEW: dict[str, Any] = {
    "base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "use_dynamic_shifting": True,
    "time_shift_type": "linear",
}  # fmt: skip


def cogview4(**config: Any) -> Any:  # noqa: ANN401
    """With a flow scheduler of this configuration, by default CogView4's own."""
    torch.manual_seed(0)
    network = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4, out_channels=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = diffusers.AutoencoderKL(block_out_channels=[32, 64], latent_channels=4, sample_size=128, **blocks)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**(config or COGVIEW))
    pipe = diffusers.CogView4Pipeline(
        tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=network.eval(), scheduler=scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def texts(batch: int = 1) -> dict[str, Tensor]:
    both = torch.randn(2, batch, 16, 32, generator=torch.Generator().manual_seed(1))
    return {"prompt_embeds": both[0], "negative_prompt_embeds": both[1]}
