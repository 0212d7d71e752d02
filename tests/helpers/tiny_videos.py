"""Video UNets with tiny random weights, and the pipeline of one: AnimateDiff's and SVD's."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from helpers.tiny_pipelines import diffusers, transformers, unet


def video(
    kind: str, channels: tuple[int, int] = (32, 64), size: tuple[int, int] = (6, 4), frames: int = 3, layers: int = 1
) -> tuple[Any, tuple[Tensor, ...]]:
    """One network, and the arguments of a call with two samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = {"animatediff": animatediff_unet, "svd": svd_unet}[kind](channels, layers)
        for parameter in network.parameters():
            if parameter.ndim <= 1:  # norms that do something, mixtures that differ
                parameter.data.normal_(0.5, 0.3)
            elif not parameter.any():  # motion modules start as nothing
                parameter.data.normal_(0, 0.1)
        network.eval().requires_grad_(False)
        if kind == "svd":
            state, beside = torch.randn(2, frames, 8, *size), (torch.randn(2, 2, 32), torch.randn(2, 3))
        else:
            state, beside = torch.randn(2, 4, frames, *size), (torch.randn(2 * frames, 5, 32),)
    return network, (state, torch.tensor(500.0), *beside)


def animatediff_unet(channels: tuple[int, int], layers: int) -> Any:  # noqa: ANN401
    adapter = diffusers.MotionAdapter(
        block_out_channels=channels, motion_layers_per_block=layers, motion_norm_num_groups=8,
        motion_num_attention_heads=4, motion_max_seq_length=16,
    )  # fmt: skip
    spatial = unet(32, block_out_channels=channels, layers_per_block=layers, norm_num_groups=8)
    return diffusers.UNetMotionModel.from_unet2d(spatial, adapter)


def svd_unet(channels: tuple[int, int], layers: int) -> Any:  # noqa: ANN401
    return diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=channels, layers_per_block=layers, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=(2, 4),
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, num_frames=3,
    )  # fmt: skip


def svd_pipeline() -> Any:  # noqa: ANN401
    network, _ = video("svd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
        )
        config = transformers.CLIPVisionConfig(
            hidden_size=32, projection_dim=32, num_hidden_layers=1, num_attention_heads=4, image_size=224,
            intermediate_size=37, patch_size=32,
        )  # fmt: skip
        encoder = transformers.CLIPVisionModelWithProjection(config)
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True)
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=vae.eval(), image_encoder=encoder.eval(), unet=network, scheduler=scheduler,
        feature_extractor=transformers.CLIPImageProcessor(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_svd(pipe: Any, num_inference_steps: int = 2, **changes: Any) -> Tensor:  # noqa: ANN401
    """Latents of a small video."""
    told: dict[str, Any] = {
        "height": 8, "width": 16, "num_frames": 3, "num_inference_steps": num_inference_steps,
        "generator": torch.Generator().manual_seed(0), "output_type": "latent",
    }  # fmt: skip
    return pipe(Image.new("RGB", (16, 8), (200, 40, 90)), **{**told, **changes}).frames
