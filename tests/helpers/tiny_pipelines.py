"""Ten diffusers pipelines with tiny random networks, made in memory: no files, no network, equal seeds equal bits."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from epd.pipelines.layout import table_layout
from epd.pipelines.placement import placed
from epd.pipelines.scheduler import EPDScheduler

# Their lazy modules and generated signatures mean nothing to a type checker.
diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

PROMPTS = ("a red fox", "an owl in snow", "fox")
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WORDS = ("a", "an", "red", "fox", "owl", "in", "snow")

for library in (diffusers_logging, transformers_logging):
    library.set_verbosity_error()
    library.disable_progress_bar()


@functools.cache
def clip_tokenizer() -> Any:  # noqa: ANN401
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    # The end token comes last: CLIP pools at the largest id.
    tokens = [*letters, *(a + "</w>" for a in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=77)


@functools.cache
def t5_tokenizer() -> Any:  # noqa: ANN401
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *("\u2581" + w for w in WORDS), *(chr(c) for c in range(33, 127))]
    vocabulary = [(p, -i / 10) for i, p in enumerate(pieces)]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, additional_special_tokens=[], model_max_length=32)


@functools.cache
def gemma_tokenizer() -> Any:  # noqa: ANN401
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581"]
    tokens += [chr(c) for c in range(33, 127)]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    # Lumina divides by the number of tokens: an empty negative prompt needs its <bos>.
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=32, add_bos_token=True)


def clip(projected: bool = False) -> Any:  # noqa: ANN401
    size = len(clip_tokenizer())
    config = transformers.CLIPTextConfig(
        vocab_size=size, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1, hidden_size=32,
        intermediate_size=64, projection_dim=32, num_hidden_layers=2, num_attention_heads=4,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5(width: int = 32, multilingual: bool = False) -> Any:  # noqa: ANN401
    kind, config = transformers.T5EncoderModel, transformers.T5Config
    if multilingual:
        kind, config = transformers.UMT5EncoderModel, transformers.UMT5Config
    return kind(
        config(
            vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )
    )  # fmt: skip


def gemma() -> Any:  # noqa: ANN401
    config = transformers.GemmaConfig(
        vocab_size=len(gemma_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return transformers.GemmaModel(config)


def vae(**changes: Any) -> Any:  # noqa: ANN401
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4,
        sample_size=64, **changes,
    )  # fmt: skip


def unet(cross: int = 32, **changes: Any) -> Any:  # noqa: ANN401
    sizes: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": cross,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, "norm_num_groups": 8,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**{**sizes, **changes})


def sd(**changes: Any) -> Any:  # noqa: ANN401
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(), unet=unet(**changes), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:  # noqa: ANN401
    network = unet(  # 80 = six time ids of 8 numbers and a pooled embedding of 32
        64, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
        transformer_layers_per_block=(1, 1), use_linear_projection=True,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(), text_encoder_2=clip(True),
        tokenizer_2=clip_tokenizer(), unet=network, add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
    )  # fmt: skip


def sd3() -> Any:  # noqa: ANN401
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64,
        pos_embed_max_size=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False), text_encoder=clip(True),
        tokenizer=clip_tokenizer(), text_encoder_2=clip(True), tokenizer_2=clip_tokenizer(), text_encoder_3=t5(64),
        tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux() -> Any:  # noqa: ANN401
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae(shift_factor=0.11, use_quant_conv=False, use_post_quant_conv=False), text_encoder=clip(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def pixart() -> Any:  # noqa: ANN401
    network = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, caption_channels=32,
        in_channels=4, out_channels=8, cross_attention_dim=32, use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(), vae=vae(), transformer=network,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def dit() -> Any:  # noqa: ANN401
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, attention_bias=True,
    )  # fmt: skip
    return diffusers.DiTPipeline(
        transformer=network, vae=vae(), scheduler=diffusers.DPMSolverMultistepScheduler(),
        id2label={0: "fox", 1: "owl"},
    )  # fmt: skip


def ddpm() -> Any:  # noqa: ANN401
    network = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    return diffusers.DDPMPipeline(unet=network, scheduler=diffusers.DDPMScheduler())


def animatediff() -> Any:  # noqa: ANN401
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=8,
        motion_num_attention_heads=4, motion_max_seq_length=16,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, steps_offset=1
    )
    return diffusers.AnimateDiffPipeline(
        vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(), unet=unet(), motion_adapter=adapter,
        scheduler=scheduler,
    )  # fmt: skip


def lumina() -> Any:  # noqa: ANN401
    network = diffusers.LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=2,
        num_kv_heads=1, multiple_of=16, cross_attention_dim=32,
    )  # fmt: skip
    return diffusers.LuminaPipeline(
        transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(), text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )  # fmt: skip


def wan() -> Any:  # noqa: ANN401
    network = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return diffusers.WanPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(multilingual=True), transformer=network,
        vae=diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip


BUILDERS = {f.__name__: f for f in (sd, sdxl, sd3, flux, pixart, dit, ddpm, animatediff, lumina, wan)}
FLOWS = ("sd3", "flux", "lumina", "wan")


def build(name: str, seed: int = 0, **changes: Any) -> Any:  # noqa: ANN401
    """One pipeline; its weights depend on the seed alone and the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = BUILDERS[name](**changes)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(name: str, steps: int, batch: int = 2, seed: int = 0, guidance: float | None = None) -> dict[str, Any]:
    """A smallest call, one generator per sample; latents where the pipeline gives them, pictures in DDPM and DiT."""
    out: dict[str, Any] = {"num_inference_steps": steps, "return_dict": False}
    out["generator"] = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
    if name == "ddpm":
        return out | {"batch_size": batch, "output_type": "np"}
    if guidance is not None:
        out["guidance_scale"] = guidance
    if name == "dit":
        return out | {"class_labels": list(range(batch)), "output_type": "np"}
    out |= {"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(batch)], "output_type": "latent"}
    size = 16 if name == "wan" else 64
    out |= {"height": size, "width": size}
    extra: dict[str, dict[str, Any]] = {
        "animatediff": {"num_frames": 4},
        "wan": {"num_frames": 5, "max_sequence_length": 16},
        "pixart": {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 16},
        "lumina": {"clean_caption": False, "max_sequence_length": 16},
        "sd3": {"max_sequence_length": 16},
        "flux": {"max_sequence_length": 16},
    }
    return out | extra.get(name, {})


def network(pipe: Any) -> Any:  # noqa: ANN401
    """The denoising network."""
    found = pipe.components.get("unet")
    return pipe.components["transformer"] if found is None else found


def calls_of(pipe: Any, steps: int = 4) -> int:  # noqa: ANN401
    """The `num_inference_steps` to call a pipeline with, for this many steps of its scheduler."""
    scheduler = pipe.scheduler
    if not isinstance(scheduler, EPDScheduler) or scheduler.table is None:
        return steps
    placement, _ = placed(pipe, scheduler.parallel)  # also of a pipeline that shares an enabled one's parts
    return len(table_layout(scheduler.table, scheduler.frame, placement).calls)


def run(pipe: Any, name: str, steps: int, **changes: Any) -> torch.Tensor:  # noqa: ANN401
    """The pipeline's result as a tensor."""
    with torch.no_grad():
        return torch.as_tensor(pipe(**{**arguments(name, calls_of(pipe, steps)), **changes})[0])
