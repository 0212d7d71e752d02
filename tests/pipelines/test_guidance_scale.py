"""Tables that scale the guidance, in pipelines that make one call of both halves; and the others, which say so."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_pipelines
from helpers.guided import scaled
from helpers.pipeline_families import FAMILIES, SEEDS
from helpers.pipeline_tables import assert_same, table_for, variant
from torch import Tensor

import epd
from epd import disable, enable
from epd.denoisers.noise import unit_noise
from epd.pipelines.denoiser import PipelineModel
from epd.pipelines.guidance import GuidanceScaling, combination_of
from epd.pipelines.kdiffusion import sample_epd
from epd.pipelines.scheduler import EPDScheduler

DOUBLED = ("sd", "sdxl", "sd3", "pixart", "dit", "animatediff", "lumina")
HALF = torch.tensor(0.5, dtype=torch.float64)
G = 3.0


def made_by(pipe: Any, name: str, steps: int, guidance: float) -> Tensor:  # noqa: ANN401
    return torch.as_tensor(pipe(**FAMILIES[name].call(SEEDS, steps, guidance))[0])


@pytest.mark.parametrize("name", DOUBLED)
def test_fans_in_one_call_single_calls_and_the_model_agree(name: str) -> None:
    """Calls of one, two and three points; DiT's loop holds both halves, Lumina's negates and leaves a channel alone."""
    pipe, table = tiny_pipelines.build(name), scaled(table_for(name, "mixed"))
    model = FAMILIES[name].model(pipe, G)
    noise = unit_noise(SEEDS, model.shape)
    with torch.no_grad():
        solved = epd.solve(table.rule(), model.for_seeds(SEEDS), noise, table.sigmas.tolist())
        plain = epd.solve(table_for(name, "mixed").rule(), model.for_seeds(SEEDS), noise, table.sigmas.tolist())
    assert float((solved - plain).abs().max()) > 1e-3 * float(plain.abs().max())
    for parallel in (True, False):
        enable(pipe, table, parallel)
        for _ in range(2 if parallel else 1):  # a second run finds nothing of the first
            made = made_by(pipe, name, epd.summary(pipe).depth, G)
            if name == "dit":
                assert_same(model.decode(solved), made.permute(0, 3, 1, 2))
            else:
                assert_same(solved, made if model.packing is None else model.packing.unpack(made))
    disable(pipe)


@pytest.mark.parametrize("name", DOUBLED)
def test_a_factor_is_the_pipelines_own_guidance_scale(name: str) -> None:
    """1/g is a call without guidance, which makes no second half at all."""
    pipe = tiny_pipelines.build(name)
    models: dict[float, PipelineModel] = {g: FAMILIES[name].model(pipe, g).for_seeds(SEEDS) for g in (G, 1.0, 6.0, 1.5)}
    x = unit_noise(SEEDS, models[G].shape)
    with torch.no_grad():
        for g, model in models.items():
            found = models[G].at_guidance(x, HALF, torch.tensor(g / G, dtype=torch.float64))
            assert_same(found, model(x, HALF), 2e-5)
        both = models[G].at_guidance(x, HALF, torch.tensor([0.5, 2.0], dtype=torch.float64))
        assert_same(both, torch.stack([models[1.5](x, HALF)[0], models[6.0](x, HALF)[1]]), 2e-5)


def test_one_factor_everywhere_is_a_run_with_another_guidance_scale() -> None:
    for name in ("sd", "lumina"):
        pipe, plain = tiny_pipelines.build(name), table_for(name, "epd")
        half = np.full(plain.nodes.shape, 0.5)
        table = dataclasses.replace(plain, guidance_scale=half, anchor_guidance=half[:, 0])
        made = made_by(enable(pipe, table), name, table.depth, 6.0)
        assert_same(made, made_by(enable(pipe, plain), name, plain.depth, G), 2e-5)
        disable(pipe)


def test_gradients_reach_factors_through_a_pipeline() -> None:
    model = FAMILIES["sd"].model(tiny_pipelines.build("sd"), G).for_seeds(SEEDS)
    x, factor = unit_noise(SEEDS, model.shape), torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)
    model.at_guidance(x, HALF, factor).sum().backward()
    with torch.no_grad():
        one, other = (model.at_guidance(x, HALF, torch.tensor(f, dtype=torch.float64)) for f in (0.0, 1.0))
    assert factor.grad is not None
    torch.testing.assert_close(factor.grad.float(), (other - one).flatten(1).sum(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "calls"), [("flux", 1), ("wan", 2), ("ddpm", 1)])
def test_pipelines_without_both_halves_in_a_call_are_refused(name: str, calls: int) -> None:
    pipe, table = tiny_pipelines.build(name), scaled(table_for(name, "epd"))
    scale = None if name == "ddpm" else G
    message = "the pipeline's call has none: give a guidance_scale above 1|it was called 2 times and returned"
    with pytest.raises(ValueError, match=message):
        enable(pipe, table)(**FAMILIES[name].call(SEEDS, table.depth, scale))
    disable(pipe)
    model = FAMILIES[name].model(pipe, scale).for_seeds(SEEDS)
    with pytest.raises(ValueError, match=message):
        model.at_guidance(unit_noise(SEEDS, model.shape), HALF, HALF)
    with pytest.raises(ValueError, match="both halves of 1 rows|it was called 2 times"):
        model.for_seeds([3]).at_guidance(unit_noise([3], model.shape), HALF, HALF)


def test_guidance_that_is_off_or_not_linear_is_refused_and_the_next_run_is_right() -> None:
    pipe, table = tiny_pipelines.build("sd"), scaled(table_for("sd", "epd"))
    call = FAMILIES["sd"].call(SEEDS, table.depth, G)
    with pytest.raises(ValueError, match="the pipeline's call has none"):
        enable(pipe, table)(**{**call, "guidance_scale": 1.0})
    with pytest.raises(ValueError, match="doesn't combine the halves of its call linearly: .* guidance_rescale"):
        pipe(**{**call, "guidance_rescale": 0.7})
    made = made_by(pipe, "sd", table.depth, G)
    assert torch.equal(made, made_by(enable(tiny_pipelines.build("sd"), table), "sd", table.depth, G))


def test_without_a_hook_it_is_refused_before_the_first_call() -> None:
    pipe, table = tiny_pipelines.build("sd"), scaled(table_for("sd", "epd"))
    stock = pipe.scheduler
    pipe.scheduler = EPDScheduler.from_table(table, stock.config)
    with pytest.raises(ValueError, match=r"put it in with epd.enable\(pipe, table\)"):
        pipe(**FAMILIES["sd"].call(SEEDS, table.depth, G))
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline

    inpainting = variant(StableDiffusionInpaintPipeline)
    with pytest.raises(ValueError, match="StableDiffusionInpaintPipeline leaves no room for .*inpainting blends"):
        enable(inpainting, table)
    assert type(inpainting.scheduler) is type(stock)
    with pytest.raises(ValueError, match="a k-diffusion model keeps to itself: take a table whose"):
        sample_epd(lambda x, sigma: x, torch.ones(1, 3, 4, 4), table=table, disable=True)


def test_which_half_is_unconditional_is_seen_in_half_precision_too() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 4, 8, 8, generator=generator)
    free, bound = base, base + 0.05 * torch.randn(2, 4, 8, 8, generator=generator)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        u, c = free.to(dtype), bound.to(dtype)
        for sign, g in ((1, 1.5), (1, 12.0), (-1, 4.0)):
            made = sign * (u + g * (c - u))
            for halves, first in (((u, c), True), ((c, u), False)):
                how = combination_of(made, *halves)
                assert how is not None and (how.first, how.sign, all(how.channels)) == (first, sign, True)
    assert combination_of(free, free, free) is None
    with pytest.raises(ValueError, match="doesn't combine the halves"):
        combination_of(torch.randn(2, 4, 8, 8, generator=generator), free, bound)


def test_guidance_that_ends_within_a_run_is_seen() -> None:
    """Two samples without guidance have as many rows as two halves of one."""
    pipe, table = tiny_pipelines.build("sd"), scaled(table_for("sd", "epd"))

    def off(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": kwargs["prompt_embeds"].chunk(2)[1]}

    call = {**FAMILIES["sd"].call(SEEDS, table.depth, G), "callback_on_step_end": off}
    with pytest.raises(ValueError, match="the pipeline's call has none"):
        enable(pipe, table)(**call, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_network_that_was_not_heard_and_lists_are_told() -> None:
    factor = torch.tensor([0.5])
    with pytest.raises(ValueError, match="the network was not heard: was epd.enable called"):
        GuidanceScaling().scaled(torch.zeros(2, 3, 4, 4), factor, 3)
    listed = GuidanceScaling()
    listed.hear([torch.zeros(3, 4, 4)] * 4)
    with pytest.raises(ValueError, match="it was called 1 times and returned no tensor"):
        listed.scaled(torch.zeros(2, 3, 4, 4), factor, 3)
