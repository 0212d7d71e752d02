"""`from_pipeline` where networks are told times without the shift of the noise levels: CogView4, GLM-Image."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers import tables
from helpers.cogview4 import COGVIEW, cogview4, texts
from helpers.pipeline_tables import assert_same
from helpers.tiny_pipelines import calls_of
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.pipelines.fan import units

SEEDS = (2, 3)
SIZE: dict[str, Any] = {"height": 16, "width": 16}
CONFIGS = [COGVIEW, {**COGVIEW, "time_shift_type": "exponential"}, {"shift": 3.0}, {"shift": 1.0}]


def latents(pipe: Any, steps: int) -> Tensor:  # noqa: ANN401
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    call = {**texts(2), **SIZE, "guidance_scale": 2.0, "output_type": "latent"}
    return pipe(**call, num_inference_steps=steps, generator=noise).images


def solved(model: Any, rule: Any, sigmas: list[float]) -> Tensor:  # noqa: ANN401
    with torch.no_grad():
        return epd.solve(rule, model.for_seeds(SEEDS), unit_noise(SEEDS, model.shape), sigmas)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(len(c) + c.get("shift", 0)))
def test_5_a_model_of_cogview4_tells_its_network_what_the_pipeline_does(config: dict[str, Any]) -> None:
    pipe = cogview4(**config)
    model = epd.from_pipeline(pipe, embeds=texts(2), guidance=2.0, **SIZE)
    stock = latents(pipe, 4)
    assert_same(solved(model, epd.rules.euler(), pipe.scheduler.sigmas.double().tolist()), stock)
    table = dataclasses.replace(tables.epd_table(), sigmas=[1.0, 0.8, 0.5, 0.2, 0.02])
    epd.enable(pipe, table)
    assert_same(solved(model, table.rule(), table.sigmas.tolist()), latents(pipe, calls_of(pipe)))


def test_5_a_shift_that_cannot_be_undone_is_refused() -> None:
    pipe = cogview4(**COGVIEW, use_karras_sigmas=True)
    with pytest.raises(ValueError, match="use_karras_sigmas moves them apart"):
        epd.from_pipeline(pipe, embeds=texts(2), guidance=2.0, **SIZE)


def test_5_glm_image_tells_its_network_one_less() -> None:
    assert units(499.0, 500.0, 1000.0, torch.float32) == "t - 1"
    assert units(500.0, 500.0, 1000.0, torch.float32) == "t"
    assert units(500.0, 500.9, 1000.0, torch.int64) == "t"  # cut off
    assert units(500.0, 501.0, 1000.0, torch.bfloat16) == "t"  # rounded
