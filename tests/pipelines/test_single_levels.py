"""`from_pipeline` evaluates single noise levels: what only a run has, and what it cannot follow, it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.pipeline_families import PIXELS, PROMPTS, SEEDS, SHORT
from helpers.pipeline_tables import variant
from helpers.tiny_pipelines import build, diffusers

from epd.denoisers.noise import unit_noise
from epd.pipelines.denoiser import from_pipeline


def controlled() -> Any:  # noqa: ANN401
    net = diffusers.ControlNetModel.from_unet(build("sd").unet, conditioning_embedding_out_channels=(8, 16, 16, 16))
    return variant(diffusers.StableDiffusionControlNetPipeline, controlnet=net.eval())


IMAGE = {"image": torch.zeros(1, 3, 64, 64)}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "skip layers": (lambda: build("sd3"), {**SHORT, "skip_guidance_layers": [0]}, "leave it out"),
    "control ends": (controlled, {**IMAGE, "control_guidance_end": 0.5}, "give 1.0"),
    "several controls end": (controlled, {**IMAGE, "control_guidance_end": [1.0, 0.5]}, "give 1.0"),
    "control starts": (controlled, {**IMAGE, "control_guidance_start": 0.1}, "give 0.0"),
    "base": (lambda: build("sdxl"), {"denoising_end": 0.8}, "leave it out"),
    "noise": (lambda: build("sd"), {"eta": 1.0}, "give 0.0"),
    "own steps": (lambda: build("sd"), {"num_inference_steps": 20}, "leave it out"),
    "own timesteps": (lambda: build("sd"), {"timesteps": [900, 500]}, "leave it out"),
    "own sigmas": (lambda: build("flux"), {**SHORT, "sigmas": torch.tensor([1.0, 0.5])}, "leave it out"),
    "own latents": (lambda: build("sd"), {"latents": torch.zeros(1, 4, 8, 8)}, "leave it out"),
    "callback": (lambda: build("sd"), {"callback_on_step_end": lambda *_: {}}, "leave it out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_option_that_has_its_effect_in_a_run_is_refused(case: str) -> None:
    make, options, remedy = REFUSED[case]
    name = list(options)[-1]
    with pytest.raises(ValueError, match=rf"^{name} = .* single noise levels: {remedy}$"):
        from_pipeline(make(), PROMPTS, options=options, **PIXELS)


def test_a_pipelines_own_default_is_refused_too() -> None:
    class Truncated(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt: Any, cfg_trunc_ratio: float = 0.5) -> Any:  # noqa: ANN401
            raise AssertionError

    with pytest.raises(ValueError, match=r"cfg_trunc_ratio = 0.5 .* give 1.0"):
        from_pipeline(variant(Truncated), PROMPTS)


def test_the_same_options_without_an_effect_are_taken() -> None:
    plain, neutral = ({}, {"eta": 0.0, "timesteps": None, "callback_on_step_end": None})
    x, sigma = unit_noise(SEEDS, (4, 8, 8)), torch.tensor(0.7)
    with torch.no_grad():
        one, other = (
            from_pipeline(build("sd"), PROMPTS, guidance=3.0, options=o, **PIXELS).for_seeds(SEEDS)(x, sigma)
            for o in (plain, neutral)
        )
    assert torch.equal(one, other)
    options = {**IMAGE, "control_guidance_start": [0.0], "control_guidance_end": [1.0]}
    from_pipeline(controlled(), PROMPTS, options=options, **PIXELS)


SECOND = {
    "time": lambda kwargs, args: {"timestep_r": args[1] / 2},
    "state": lambda kwargs, args: {"streams": [{"audio": args[0][:, :1] + 1}]},
}


@pytest.mark.parametrize(("what", "name"), [("time", "timestep_r"), ("state", "streams.0.audio")])
def test_a_second_time_or_state_beside_the_first_is_refused(what: str, name: str) -> None:
    pipe = build("sd")

    def add(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, **SECOND[what](kwargs, args)}

    handle = pipe.unet.register_forward_pre_hook(add, with_kwargs=True)
    with pytest.raises(ValueError, match=f"hands its network '{name}', which changes with the {what} as"):
        from_pipeline(pipe, PROMPTS, **PIXELS)
    handle.remove()
    assert not pipe.unet._forward_pre_hooks
    assert from_pipeline(pipe, PROMPTS, **PIXELS).shape == (4, 8, 8)
