"""Tiny pipelines whose networks take packed patches (Qwen-Image), lists (Z-Image) or a second state (sound)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .tiny_pipelines import diffusers

WORDS = 5


def randomised(network: Any, seed: int = 0) -> Any:  # noqa: ANN401 - a network of diffusers
    """No layer starts at zero, so that everything that it is called with counts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        if not bool((parameter == 1).all()):  # the scales of norms
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def embeddings(seed: int, length: int = WORDS) -> Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(seed))


def flow() -> Any:  # noqa: ANN401
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def qwen_image() -> Any:  # noqa: ANN401
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=None, text_encoder=None,
        tokenizer=None, transformer=randomised(network),
    )  # fmt: skip


def z_image() -> Any:  # noqa: ANN401
    network = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[64, 32, 32],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, transformer=randomised(network)
    )


class PictureAndSound(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A network of two states and two times, each of which changes both outputs."""

    config_name = "config.json"

    @diffusers.configuration_utils.register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(
        self, hidden_states: Tensor, audio_hidden_states: Tensor, timestep: Tensor, audio_timestep: Tensor
    ) -> tuple[Tensor, Tensor]:
        times = torch.stack([timestep, audio_timestep], 1).repeat_interleave(4, 1) / 1000
        both = self.mix(torch.cat([hidden_states, audio_hidden_states], 1) + times).tanh()
        return both[:, :4], both[:, 4:]


class SoundingPipeline(diffusers.DiffusionPipeline):
    """Its loop steps both states, each by its own copy of the scheduler, as LTX-2 does."""

    def __init__(self, transformer: PictureAndSound, scheduler: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def __call__(self, num_inference_steps: int) -> Tensor:
        latents, sound = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0)).unbind()
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            out = self.transformer(
                hidden_states=latents, audio_hidden_states=sound, timestep=t.expand(2), audio_timestep=t.expand(2)
            )
            sound = scheduler.step(out[1], t, sound, return_dict=False)[0]
            latents = self.scheduler.step(out[0], t, latents, return_dict=False)[0]
        return torch.cat([latents, sound], 1)


def sounding() -> Any:  # noqa: ANN401
    return SoundingPipeline(randomised(PictureAndSound()), flow())
