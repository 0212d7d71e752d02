"""`from_pipeline` where the network takes a list with one state per sample: Z-Image. And what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.list_and_packed_pipelines import embeddings, flow, sounding, z_image
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import calls_of, diffusers
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise

SEEDS = (2, 3)
SIZE: dict[str, Any] = {"height": 64, "width": 64}
TEXTS = {"prompt_embeds": embeddings(1), "negative_prompt_embeds": embeddings(2)}


class Written(diffusers.ZImagePipeline):
    """Its texts are as long as they are."""

    def encode_prompt(
        self, prompt: list[str], do_classifier_free_guidance: bool, **_: object
    ) -> tuple[list[Tensor], ...]:
        def rows(seed: int) -> list[Tensor]:
            return [embeddings(seed + len(text), len(text))[0] for text in prompt]

        return rows(1), rows(2) if do_classifier_free_guidance else []


def written() -> Any:  # noqa: ANN401
    parts = z_image().components
    return Written(**{**parts, "scheduler": flow()})


def latents(pipe: Any, steps: int, texts: dict[str, Any], guidance: float) -> Tensor:  # noqa: ANN401
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    call = {**texts, **SIZE, "guidance_scale": guidance, "output_type": "latent", "return_dict": False}
    with torch.no_grad():
        return pipe(**call, num_inference_steps=steps, generator=noise)[0]


def solved(model: Any, rule: Any, sigmas: list[float]) -> Tensor:  # noqa: ANN401
    with torch.no_grad():
        return epd.solve(rule, model.for_seeds(SEEDS), unit_noise(SEEDS, model.shape), sigmas)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("how", ["embeds", "prompts"])
def test_5_a_model_of_z_image_is_its_pipeline(how: str, guidance: float) -> None:
    prompts = ["abcdefg", "abc"]
    if how == "embeds":
        pipe, call = z_image(), {name: [*rows] for name, rows in TEXTS.items()}
        model = epd.from_pipeline(pipe, embeds=TEXTS, guidance=guidance, **SIZE)
    else:
        pipe, call = written(), {"prompt": prompts}
        model = epd.from_pipeline(pipe, prompts, guidance=guidance, **SIZE)
        call = {"prompt": [prompts[seed % 2] for seed in SEEDS]}
    assert model.shape == (4, 8, 8)
    assert model.for_seeds(SEEDS).depends_on() is not None
    stock = latents(pipe, 4, call, guidance)
    assert_same(solved(model, epd.rules.euler(), pipe.scheduler.sigmas.double().tolist()), stock)
    table = table_for("flux", "epd")
    epd.enable(pipe, table, parallel=False)
    assert_same(solved(model, table.rule(), table.sigmas.tolist()), latents(pipe, calls_of(pipe), call, guidance))


def test_5_a_model_of_z_image_has_gradients() -> None:
    model = epd.from_pipeline(z_image(), embeds=TEXTS, guidance=3.0, **SIZE).for_seeds(SEEDS)
    x = unit_noise(SEEDS, model.shape).requires_grad_()
    half, step = torch.tensor(0.5, dtype=torch.float64), unit_noise((8, 9), model.shape)
    model(x, half).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        ahead, behind = (float(model(x + h * step, half).double().sum()) for h in (0.01, -0.01))
    assert float((x.grad * step).sum()) == pytest.approx((ahead - behind) / 0.02, rel=0.01, abs=0.01)


def test_5_a_second_state_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="SoundingPipeline cannot be .* 'audio_hidden_states' beside"):
        epd.from_pipeline(sounding(), embeds={})
