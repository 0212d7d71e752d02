"""Pipelines that combine their latents with the network's output themselves, and how such a thing is never silent."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.pipeline_tables import TABLES, assert_same, table_for
from helpers.prx_pixel import call, prx_pixel
from helpers.tiny_pipelines import build, calls_of, diffusers, run
from torch import Tensor

import epd
from epd.pipelines.placement import COMBINING

MASKS = {name: f"{name.removesuffix('prompt')}prompt_attention_mask" for name in ("prompt", "negative_prompt")}


def table(kind: str) -> epd.Table:
    """This pipeline divides by 0.05 at least."""
    return dataclasses.replace(table_for("flux", kind), sigmas=[1.0, 0.8, 0.5, 0.2, 0.06])


def made_by(pipe: Any, batch: int, guidance: float = 1.0) -> Tensor:  # noqa: ANN401
    with torch.no_grad():
        return torch.as_tensor(pipe(**call(batch, guidance), num_inference_steps=calls_of(pipe))[0])


def solved(pipe: Any, kind: str, batch: int, guidance: float) -> Tensor:  # noqa: ANN401
    """What the network says is the denoised picture."""
    texts = call(batch, guidance)

    def says(name: str, x: Tensor, sigma: Tensor) -> Tensor:
        words, mask = (texts[key].repeat_interleave(len(x) // batch, 0) for key in (f"{name}_embeds", MASKS[name]))
        times = sigma.float().expand(len(x))
        return pipe.transformer(x, times, words, attention_mask=mask, return_dict=False)[0]

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        with_text = says("prompt", x, sigma)
        if guidance == 1:
            return with_text
        without = says("negative_prompt", x, sigma)
        return without + guidance * (with_text - without)

    seeds = (torch.Generator().manual_seed(i) for i in range(batch))
    noise = torch.cat([torch.randn(1, 3, 16, 16, generator=seed) for seed in seeds]) * pipe.config.noise_scale
    with torch.no_grad():
        return epd.solve(table(kind).rule(), denoiser, noise, table(kind).sigmas.tolist())


@pytest.mark.parametrize(("batch", "guidance"), [(1, 1.0), (1, 3.0), (2, 1.0)])  # this pipeline guides one picture only
@pytest.mark.parametrize("kind", ["epd", "memory"])
def test_5_a_loop_that_makes_velocities_itself_gets_one_point_at_a_time(kind: str, batch: int, guidance: float) -> None:
    pipe = epd.enable(prx_pixel(), table(kind))
    assert "combines its latents" in epd.summary(pipe).note
    made = made_by(pipe, batch, guidance)
    assert_same(made, solved(pipe, kind, batch, guidance))
    assert_same(made, made_by(epd.enable(prx_pixel(), table(kind), parallel=False), batch, guidance))


def test_5_a_loop_that_combines_is_never_moved_to_a_look_ahead_point() -> None:
    pipe = epd.enable(prx_pixel(), table("plugin with afs"))
    with pytest.warns(UserWarning, match="first slope is analytic"):
        made = made_by(pipe, 1)
    assert_same(made, made_by(epd.enable(prx_pixel(), dataclasses.replace(table("plugin with afs"), afs=False)), 1))


class Unlisted(diffusers.PRXPixelPipeline):
    """Made known under no name."""


def test_5_a_combination_that_nobody_knew_of_is_an_error_with_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epd.pipelines.placement.COMBINING", frozenset())
    pipe = epd.enable(prx_pixel(Unlisted), table("epd"))
    assert epd.summary(pipe).placement == "batched"
    with pytest.raises(ValueError, match="combines what its network says of 3 rows with a tensor of one"):
        made_by(pipe, 1)
    with pytest.raises(RuntimeError, match="size of tensor"):
        made_by(pipe, 2)
    made = made_by(epd.enable(pipe, table("epd"), parallel=False), 1)
    assert_same(made, solved(pipe, "epd", 1, 1.0))


def test_5_the_combining_pipelines_are_pipelines() -> None:
    assert {name for name in COMBINING if isinstance(getattr(diffusers, name, None), type)} == COMBINING


class TwoNetworks(diffusers.DiffusionPipeline):
    """Its guidance has a network of its own, as Ideogram 4's has."""

    def __init__(self, unet: Any, unconditional_unet: Any, scheduler: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.register_modules(unet=unet, unconditional_unet=unconditional_unet, scheduler=scheduler)

    def __call__(self, batch_size: int, num_inference_steps: int) -> Tensor:
        latents = torch.randn(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            one, other = (network(latents, t).sample for network in (self.unet, self.unconditional_unet))
            latents = self.scheduler.step(other + 3 * (one - other), t, latents).prev_sample
        return latents


@pytest.mark.parametrize("kind", ["epd", "memory"])
def test_5_a_second_network_without_a_hook_gets_one_point_at_a_time(kind: str) -> None:
    parts = [build("ddpm", seed) for seed in (0, 1)]
    pipe = TwoNetworks(parts[0].unet, parts[1].unet, parts[0].scheduler)
    results = []
    for parallel in (True, False):
        epd.enable(pipe, table_for("sd", kind), parallel)
        assert "'unconditional_unet'" in epd.summary(pipe).note
        with torch.no_grad():
            results.append(pipe(1, calls_of(pipe)))
    assert_same(*results)
    with pytest.raises(ValueError, match="TwoNetworks cannot be .* 'unconditional_unet'"):
        epd.from_pipeline(epd.disable(pipe))


def test_5_what_the_pipelines_combine_cannot_be_evaluated_at_single_noise_levels() -> None:
    with pytest.raises(ValueError, match="PRXPixelPipeline cannot be .* combines its latents"):
        epd.from_pipeline(prx_pixel())


@pytest.mark.parametrize("kind", TABLES)
def test_networks_outputs_are_ordinary_tensors_after_a_run(kind: str) -> None:
    pipe = epd.enable(build("sd"), table_for("sd", kind))
    out = run(pipe, "sd", 4)
    assert type(out) is Tensor
    assert type(pipe.unet(torch.ones(1, 4, 8, 8), 5.0, torch.ones(1, 3, 32)).sample) is Tensor
