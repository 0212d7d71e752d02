"""An `AutoencoderKL` whose weights are set so that it does nothing: pixel models in latent-diffusion pipelines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

LARGE = 2048.0  # constant channels +-LARGE dominate the group norm's variance, so that it scales by a constant
SHIFT = 24.0  # SiLU(SHIFT + x) = SHIFT + x to 1e-9 for |x| of a few units


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _carry(conv_in: nn.Conv2d, channels: int) -> None:
    """Write (+x_c, -x_c) for every channel c, then +LARGE and -LARGE."""
    _silence(conv_in)
    assert conv_in.bias is not None
    for c in range(channels):
        conv_in.weight[2 * c, c, 1, 1] = 1
        conv_in.weight[2 * c + 1, c, 1, 1] = -1
    conv_in.bias[-2:] = torch.tensor([LARGE, -LARGE])


def _restore(norm: nn.GroupNorm, conv_out: nn.Conv2d, channels: int) -> None:
    """Undo the (linear) norm, lift above SiLU's bend, and read (y_2c - y_2c+1) / 2, in which the lift cancels."""
    width = 2 * channels + 2
    nn.init.constant_(norm.weight, LARGE * math.sqrt(2 / width))
    nn.init.constant_(norm.bias, SHIFT)
    norm.weight[-2:], norm.bias[-2:] = 0.0, 0.0
    _silence(conv_out)
    for c in range(channels):
        conv_out.weight[c, 2 * c, 1, 1] = 0.5
        conv_out.weight[c, 2 * c + 1, 1, 1] = -0.5


@torch.no_grad()
def identity_vae(channels: int = 1, sample_size: int = 8) -> AutoencoderKL:
    """decode(z) = z and encode(x).mode() = x, to 1e-5 for values of a few units, in float32.

    One level, one group: residual branches are zero; each image channel is carried as +x and -x (so that the group's
    mean is 0) beside two large constants (so that its variance is a constant); scaling_factor is 1.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=channels,
        block_out_channels=(2 * channels + 2,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=sample_size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for half in (vae.encoder, vae.decoder):
        for name, layer in half.named_modules():
            if name.endswith("conv2"):
                _silence(layer)
        _carry(half.conv_in, channels)
        _restore(cast(nn.GroupNorm, half.conv_norm_out), half.conv_out, channels)
    assert vae.encoder.conv_out.bias is not None
    vae.encoder.conv_out.bias[channels:] = -30.0  # log variance
    return vae.eval().requires_grad_(False)
