"""`from_pipeline` is the pipeline: solved with Euler it gives what the pipeline gives with its stock Euler."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny_pipelines
import torch
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.denoisers.timesteps import Timesteps
from epd.pipelines.denoiser import PipelineModel, from_pipeline

PROMPTS = ("a red fox", "snow in snow", "fox")
LABELS = (0, 5, 7)
SEEDS = (3, 4)
PIXELS: dict[str, Any] = {"height": 64, "width": 64}
SHORT: dict[str, Any] = {"max_sequence_length": 16}
PLAIN: dict[str, Any] = {"clean_caption": False}


@dataclass(frozen=True)
class Family:
    """How a pipeline is asked for a small picture, by us and by its users."""

    size: dict[str, Any] = field(default_factory=lambda: dict(PIXELS))
    options: dict[str, Any] = field(default_factory=dict)
    condition: str = "prompts"

    def model(self, pipe: Any, guidance: float | None, **changes: Any) -> PipelineModel:  # noqa: ANN401
        conditions: dict[str, Any] = {"prompts": {"prompts": PROMPTS}, "class_labels": {"class_labels": LABELS}}.get(
            self.condition, {}
        )
        return from_pipeline(pipe, guidance=guidance, options=self.options, **self.size, **conditions, **changes)

    def call(self, seeds: Sequence[int], steps: int, guidance: float | None) -> dict[str, Any]:
        out: dict[str, Any] = {**self.size, **self.options, "num_inference_steps": steps, "return_dict": False}
        out["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        if guidance is not None:
            out["guidance_scale"] = guidance
        if self.condition == "prompts":
            return {**out, "prompt": [PROMPTS[seed % 3] for seed in seeds], "output_type": "latent"}
        if self.condition == "class_labels":
            return {**out, "class_labels": [LABELS[seed % 3] for seed in seeds], "output_type": "np"}
        return {**out, "batch_size": len(seeds), "output_type": "np"}


FAMILIES = {
    "sd": Family(),
    "sdxl": Family(),
    "sd3": Family(options=SHORT),
    "flux": Family(options=SHORT),
    "pixart": Family(options={**SHORT, **PLAIN, "use_resolution_binning": False}),
    "dit": Family({}, condition="class_labels"),
    "ddpm": Family({}, condition="none"),
    "animatediff": Family({**PIXELS, "num_frames": 4}),
    "lumina": Family(options={**SHORT, **PLAIN}),
    "wan": Family({"height": 16, "width": 16, "num_frames": 5}, SHORT),
}


def _own(config: Any, kind: type) -> dict[str, Any]:  # noqa: ANN401 - diffusers' frozen dictionary
    """The entries of another scheduler's configuration that this class has."""
    known = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in config.items() if name in known}


def stock_euler(pipe: Any, steps: int, alphas_cumprod: Tensor | None) -> tuple[Tensor, float]:  # noqa: ANN401
    """Gives the pipeline a first-order scheduler; its sigmas, and its start state over noise * sigmas[0]."""
    if alphas_cumprod is None:
        return torch.empty(0), 1.0  # rectified flow: the stock one is Euler; its sigmas are known after the run
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    changes = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "thresholding": False}
    pipe.scheduler = DDIMScheduler(**{**_own(pipe.scheduler.config, DDIMScheduler), **changes})
    pipe.scheduler.set_timesteps(steps)
    sigmas = Timesteps(alphas_cumprod).sigma(pipe.scheduler.timesteps)
    return torch.cat([sigmas, sigmas.new_zeros(1)]), float((1 + sigmas[0] ** 2).sqrt() / sigmas[0])


def both_ways(
    pipe: Any,  # noqa: ANN401
    family: Family,
    model: PipelineModel,
    guidance: float | None,
    **changes: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    """(solved by us, made by the pipeline), of latents or, where it does not give those, of pictures."""
    sigmas, start = stock_euler(pipe, 4, model.alphas_cumprod)
    made = torch.as_tensor(pipe(**{**family.call(SEEDS, 4, guidance), **changes})[0])
    if model.path == "flow":
        sigmas = pipe.scheduler.sigmas.double()
    noise = (unit_noise(SEEDS, model.shape).double() * start).float()
    with torch.no_grad():
        solved = epd.solve(epd.rules.euler(), model.for_seeds(SEEDS), noise, sigmas)
    if family.condition != "prompts":
        return model.decode(solved), made.permute(0, 3, 1, 2)
    return solved, made if model.packing is None else model.packing.unpack(made)


def assert_same(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    """To a fraction of the largest value: states of untrained networks reach hundreds."""
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_euler_is_the_stock_pipeline(name: str, guidance: float) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    scale = None if name == "ddpm" else guidance
    model = family.model(pipe, scale)
    assert model.guidance == (1.0 if scale is None else guidance)
    assert_same(*both_ways(pipe, family, model, scale), 3e-5 if name == "ddpm" else 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fan_is_one_call_and_equals_single_evaluations(name: str) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    model = family.model(pipe, None if name == "ddpm" else 3.0)
    bound, top = model.for_seeds(SEEDS), model.sigma_max
    x = unit_noise(SEEDS, model.shape) * top
    sigma = torch.tensor([top, top / 2, top / 4, top / 8], dtype=torch.float64)
    calls: list[int] = []
    network = pipe.components.get("unet") or pipe.components["transformer"]
    handle = network.register_forward_pre_hook(lambda module, args: calls.append(1))
    with torch.no_grad():
        fan = bound(x.repeat_interleave(2, 0), sigma)
        handle.remove()
        single = [bound(x, sigma[k::2][:, None].expand(2, 1).reshape(2)) for k in range(2)]
        alone = [model.for_seeds([s])(x[i : i + 1], sigma[2 * i]) for i, s in enumerate(SEEDS)]
    assert len(calls) == (2 if name == "wan" else 1)
    assert_same(fan[::2], single[0])
    assert_same(fan[1::2], single[1])
    assert_same(fan[::2], torch.cat(alone))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "lumina", "wan", "animatediff", "dit"])
def test_seeds_stand_for_conditions(name: str) -> None:
    model = FAMILIES[name].model(tiny_pipelines.build(name), 3.0)
    x = unit_noise([0], model.shape) * model.sigma_max
    sigma = torch.tensor(model.sigma_max / 2, dtype=torch.float64)
    with torch.no_grad():
        first, second, again = (model.for_seeds([seed])(x, sigma) for seed in (0, 1, 3))
        unbound = model(x, sigma)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(first, unbound)


@pytest.mark.parametrize("name", FAMILIES)
def test_differentiable_with_respect_to_the_state(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    model = FAMILIES[name].model(pipe, None if name == "ddpm" else 2.0)
    bound, half = model.for_seeds(SEEDS), torch.tensor(0.5, dtype=torch.float64)
    x, direction = unit_noise(SEEDS, model.shape), unit_noise((8, 9), model.shape)
    weight = unit_noise((6, 7), model.shape)
    leaf = x.clone().requires_grad_()
    (bound(leaf, half) * weight).sum().backward()
    assert leaf.grad is not None
    with torch.no_grad():
        ahead, behind = (float((bound(x + h * direction, half) * weight).double().sum()) for h in (0.01, -0.01))
    assert float((leaf.grad * direction).sum()) == pytest.approx((ahead - behind) / 0.02, rel=0.01, abs=0.05)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert all(p.grad is None for part in parts for p in part.parameters())


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


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pipeline_and_the_random_state_are_left_alone(name: str) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    before, config, random = dict(vars(pipe)), dict(pipe.config), torch.get_rng_state()
    scale = None if name == "ddpm" else 3.0
    model = family.model(pipe, scale)
    x = unit_noise([0], model.shape)
    model(x, torch.tensor(0.5))
    model.decode(x)
    assert torch.equal(torch.get_rng_state(), random)
    assert dict(pipe.config) == config
    assert pipe.scheduler is before["scheduler"]
    assert pipe.encode_prompt.__self__ is pipe if "encode_prompt" in dir(pipe) else True
    assert pipe._progress_bar_config == before["_progress_bar_config"]
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            assert not part._forward_pre_hooks
    fresh = tiny_pipelines.build(name)
    call = {**family.call([1], 2, scale), "output_type": "np"}
    one, other = (p(**{**call, "generator": torch.Generator().manual_seed(1)})[0] for p in (pipe, fresh))
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("name", FAMILIES)
def test_decode_is_the_pipelines_own(name: str) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    scale = None if name == "ddpm" else 1.0
    model = family.model(pipe, scale)
    if family.condition != "prompts":
        return  # compared as pictures in test_euler_is_the_stock_pipeline
    call = family.call(SEEDS, 2, scale)
    latents = pipe(**call)[0]
    call["generator"] = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    pictures = pipe(**{**call, "output_type": "pt"})[0]
    ours = model.decode(latents if model.packing is None else model.packing.unpack(latents))
    if pictures.ndim == 5:
        pictures = torch.cat(list(pictures.unbind(1)), dim=-1)
    assert_same(ours, pictures)
    assert 0 <= float(ours.min()) <= float(ours.max()) <= 1


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
    with pytest.raises(ValueError, match="neither variance preserving"):
        from_pipeline(pipe, PROMPTS)
