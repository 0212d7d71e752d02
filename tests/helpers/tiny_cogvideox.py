"""A tiny CogVideoX, which is told its texts as embeddings."""

from __future__ import annotations

from typing import Any

from .list_and_packed_pipelines import randomised
from .tiny_pipelines import diffusers


def cogvideox() -> Any:  # noqa: ANN401
    network = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=16,
        num_layers=1, sample_width=8, sample_height=8, sample_frames=5, patch_size=2, temporal_compression_ratio=4,
        max_text_seq_length=5,
    )  # fmt: skip
    blocks = {"down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4}
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=[8] * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4, **blocks,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=randomised(network), scheduler=scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
