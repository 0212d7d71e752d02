"""`from_pipeline` beyond the ten plain families: options, predictions, precisions, further networks, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.pipeline_families import FAMILIES, PIXELS, PROMPTS, SEEDS, SHORT, Family, assert_same, both_ways
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.pipelines.denoiser import from_pipeline


def test_recomputation_gives_the_same_gradient() -> None:
    from torch.utils.checkpoint import checkpoint

    model = FAMILIES["sd"].model(tiny_pipelines.build("sd"), 2.0).for_seeds(SEEDS)
    sigma = torch.tensor(3.0, dtype=torch.float64)
    grads = []
    for call in (model, lambda x, s: checkpoint(model, x, s, use_reentrant=False)):
        x = unit_noise(SEEDS, model.shape).requires_grad_()
        out = call(x, sigma)
        assert isinstance(out, Tensor)
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert torch.equal(*grads)


def test_further_options_of_the_call() -> None:
    rescaled = Family(options={"guidance_rescale": 0.7})
    pipe = tiny_pipelines.build("sd")
    assert_same(*both_ways(pipe, rescaled, rescaled.model(pipe, 4.0), 4.0))
    true_guidance = Family(options={**SHORT, "true_cfg_scale": 3.0})
    pipe = tiny_pipelines.build("flux")
    model = true_guidance.model(pipe, 2.0, negative_prompt="snow")
    assert_same(*both_ways(pipe, true_guidance, model, 2.0, negative_prompt=["snow"] * 2))


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_predictions(prediction: str) -> None:
    pipe = tiny_pipelines.build("sd")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction)
    model = FAMILIES["sd"].model(pipe, 3.0)
    assert model.prediction == prediction
    assert_same(*both_ways(pipe, FAMILIES["sd"], model, 3.0))


def test_edm_schedulers() -> None:
    from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

    pipe = tiny_pipelines.build("sdxl")
    pipe.scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    model = FAMILIES["sdxl"].model(pipe, 3.0)
    assert (model.path, model.prediction, model.sigma_min, model.sigma_max) == ("ve", "edm", 0.002, 80.0)
    made = pipe(**FAMILIES["sdxl"].call(SEEDS, 4, 3.0))[0]
    sigmas = pipe.scheduler.sigmas.double()
    start = float((1 + sigmas[0] ** 2).sqrt() / sigmas[0])
    with torch.no_grad():
        solved = epd.solve(epd.rules.euler(), model.for_seeds(SEEDS), unit_noise(SEEDS, model.shape) * start, sigmas)
    assert_same(solved, made)


def test_two_networks_share_the_timesteps() -> None:
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    first, second = tiny_pipelines.build("wan"), tiny_pipelines.build("wan", seed=5)
    parts = {k: first.components[k] for k in ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")}
    pipe = WanPipeline(**parts, transformer_2=second.transformer, boundary_ratio=0.9)
    pipe.set_progress_bar_config(disable=True)
    model = FAMILIES["wan"].model(pipe, 3.0)
    assert_same(*both_ways(pipe, FAMILIES["wan"], model, 3.0))
    x, sigma = unit_noise(SEEDS, model.shape), torch.tensor([0.95, 0.5], dtype=torch.float64)
    with torch.no_grad():
        mixed = model.for_seeds(SEEDS)(x, sigma)
        apart = [model.for_seeds([s])(x[i : i + 1], sigma[i]) for i, s in enumerate(SEEDS)]
    assert_same(mixed, torch.cat(apart))


def test_controlnet_sees_the_state_too() -> None:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline

    plain = tiny_pipelines.build("sd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        control = ControlNetModel.from_unet(plain.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
        for parameter in control.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    pipe = StableDiffusionControlNetPipeline(**plain.components, controlnet=control, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    family = Family(options={"image": unit_noise([0], (3, 64, 64)).sigmoid()})
    model = family.model(pipe, 3.0)
    assert_same(*both_ways(pipe, family, model, 3.0))
    x, sigma = unit_noise(SEEDS, model.shape), torch.tensor([2.0, 0.5], dtype=torch.float64)
    with torch.no_grad():
        mixed = model.for_seeds(SEEDS)(x, sigma)
        apart = [model.for_seeds([s])(x[i : i + 1], sigma[i]) for i, s in enumerate(SEEDS)]
    assert_same(mixed, torch.cat(apart))


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_half_precision_networks(name: str) -> None:
    family = FAMILIES[name]
    low = family.model(tiny_pipelines.build(name).to(torch.bfloat16), 2.0)
    full = family.model(tiny_pipelines.build(name), 2.0)
    assert low.time == full.time
    x, sigma = unit_noise(SEEDS, full.shape), torch.tensor(0.7, dtype=torch.float64)
    with torch.no_grad():
        ours, exact = low.for_seeds(SEEDS)(x, sigma), full.for_seeds(SEEDS)(x, sigma)
    assert ours.dtype == torch.float32
    assert_same(ours, exact, 0.05)


def test_precomputed_embeddings_need_no_text_encoder() -> None:
    pipe = tiny_pipelines.build("sd")
    by_text = from_pipeline(pipe, PROMPTS, guidance=3.0, **PIXELS)
    with torch.no_grad():
        cond, free = pipe.encode_prompt(list(PROMPTS), "cpu", 1, True)
    pipe.text_encoder = pipe.tokenizer = None
    embeds = {"prompt_embeds": cond, "negative_prompt_embeds": free}
    by_embeds = from_pipeline(pipe, embeds=embeds, guidance=3.0, **PIXELS)
    x, sigma = unit_noise(SEEDS, by_text.shape), torch.tensor(0.7)
    with torch.no_grad():
        assert_same(by_embeds.for_seeds(SEEDS)(x, sigma), by_text.for_seeds(SEEDS)(x, sigma))


def test_many_prompts_are_encoded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(["fox"] * (1 + i % 5)) for i in range(18)]  # of different lengths: Lumina pads to the longest
    for name in ("sd", "lumina"):
        pipe, family = tiny_pipelines.build(name), FAMILIES[name]
        model = from_pipeline(pipe, texts, guidance=2.0, options=family.options, **family.size)
        x, sigma = unit_noise([17, 1], model.shape), torch.tensor(0.7)
        with torch.no_grad():
            many = model.for_seeds([17, 1])(x, sigma)
            few = from_pipeline(pipe, [texts[17], texts[1]], guidance=2.0, options=family.options, **family.size)
            assert_same(many, few.for_seeds([0, 1])(x, sigma))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dit", {"height": 64}, "DiTPipeline takes no 'height'; it takes class_labels"),
        ("ddpm", {"guidance": 2.0}, "DDPMPipeline takes no 'guidance_scale'"),
        ("ddpm", {"prompts": ["x"]}, "DDPMPipeline takes no 'prompt'"),
        ("sd", {"prompts": []}, "is empty"),
        ("sd", {"options": {"guidence_rescale": 1}}, "takes no 'guidence_rescale'"),
        ("sd", {"embeds": {"prompt_embeds": torch.zeros(2, 7), "negative_prompt_embeds": torch.zeros(1, 7)}}, "2.*1"),
    ],
)
def test_what_a_pipeline_does_not_take(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_pipeline(tiny_pipelines.build(name), **arguments)


def test_what_cannot_be_evaluated_says_why() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
    from diffusers.schedulers.scheduling_vq_diffusion import VQDiffusionScheduler

    pipe = tiny_pipelines.build("sd")
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="text-to-image pipeline of the same components"):
        from_pipeline(other, PROMPTS, options={"image": torch.zeros(1, 3, 64, 64), "strength": 0.5})
    model = from_pipeline(pipe, PROMPTS, guidance=2.0, **PIXELS).for_seeds(SEEDS)
    with pytest.raises(ValueError, match="a call of 3 rows cannot be served by 2"):
        model(torch.zeros(3, *model.shape), torch.tensor(1.0))
    pipe.scheduler = VQDiffusionScheduler(num_vec_classes=4)
    with pytest.raises(ValueError, match="VQDiffusionScheduler are not supported: it samples tokens"):
        from_pipeline(pipe, PROMPTS)


def cogvideox() -> Any:  # noqa: ANN401 - a pipeline
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    text = tiny_pipelines.build("pixart")
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=32,
        num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2, max_text_seq_length=16,
    )  # fmt: skip
    blocks: Any = (("CogVideoXDownBlock3D",) * 4, ("CogVideoXUpBlock3D",) * 4, (8, 8, 8, 8))
    vae = AutoencoderKLCogVideoX(3, 3, *blocks, latent_channels=4, layers_per_block=1, norm_num_groups=2)
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    return CogVideoXPipeline(text.tokenizer, text.text_encoder, vae, transformer.eval(), scheduler)  # type: ignore[arg-type]


def auraflow() -> Any:  # noqa: ANN401 - a pipeline
    from diffusers.models.transformers.auraflow_transformer_2d import AuraFlowTransformer2DModel
    from diffusers.pipelines.aura_flow.pipeline_aura_flow import AuraFlowPipeline
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    text, wan = tiny_pipelines.build("pixart"), tiny_pipelines.build("wan")
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    return AuraFlowPipeline(
        wan.tokenizer, wan.text_encoder, text.vae, transformer.eval(), FlowMatchEulerDiscreteScheduler()
    )


@pytest.mark.parametrize("build", [cogvideox, auraflow])
def test_pipelines_that_nobody_here_knows(build: Any) -> None:  # noqa: ANN401 - a function
    """Nothing is written for them: they evaluate themselves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = build()
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 16, "num_frames": 9} if build is cogvideox else PIXELS
    family = Family(size, SHORT)
    model = family.model(pipe, 3.0)
    assert_same(*both_ways(pipe, family, model, 3.0))
