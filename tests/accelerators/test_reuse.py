"""Reused slopes: nothing left out is bit-equal, every fan left out is the solver of anchors, a step a larger step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers import tiny_pipelines
from helpers.pipeline_families import FAMILIES, SEEDS
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import build, run

import epd
from epd.denoisers.digits import digits

STEPS = (0, 1, 2, 3)


def anchors_only(table: epd.Table) -> epd.Table:
    """Euler on the same sigmas."""
    n = table.num_steps
    return epd.Table(table.sigmas, np.zeros((n, 0)), np.zeros((n, 0)), anchor=np.ones(n), calls=1)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_every_fan_reused_is_the_table_of_anchors(name: str, parallel: bool) -> None:
    pipe, table = build(name), dataclasses.replace(table_for(name, "epd"), slope_scale=None)
    epd.enable(pipe, table, parallel=parallel)
    full = run(pipe, name, 4)
    epd.accelerate(pipe, epd.Reuse(STEPS, "fan"))
    reused = run(pipe, name, 4)
    epd.decelerate(pipe)
    epd.enable(pipe, anchors_only(table), parallel=parallel)
    assert_same(reused, run(pipe, name, 4), 1e-6)
    assert not torch.allclose(reused, full, rtol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3", "dit", "wan", "ddpm"])
def test_the_same_in_every_driver(name: str) -> None:
    pipe, out = build(name), {}
    guidance = None if name == "ddpm" else 3.0
    table = table_for(name, "mixed")
    model = FAMILIES[name].model(pipe, guidance)
    noise = epd.unit_noise(SEEDS, model.shape)
    epd.accelerate(pipe, epd.Reuse((1, 2), "all"))
    for parallel in (True, False):
        epd.enable(pipe, table, parallel=parallel)
        call = FAMILIES[name].call(SEEDS, epd.summary(pipe).depth, guidance)
        if model.packing is None and name not in ("dit", "ddpm"):  # these draw their own noise
            call["latents"] = noise
        with torch.no_grad():
            out[parallel] = torch.as_tensor(pipe(**call)[0])
        epd.disable(pipe)
    for answer in (epd.batched, epd.serial):
        with torch.no_grad():
            solved = epd.solve(table.rule(), model.for_seeds(SEEDS), noise, table.sigmas, answer)
        out[answer] = solved
    assert_same(out[True], out[False], 1e-5)
    assert_same(out[epd.batched], out[epd.serial], 1e-5)
    if name in ("sd", "sd3", "wan"):
        assert_same(out[epd.batched], out[True], 1e-5)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "lumina"])
def test_a_reused_step_of_the_stock_euler_is_a_larger_step(name: str) -> None:
    """A jump on a grid: 5 sigmas with one left out are those 5 with the slope reused."""
    pipe = build(name)
    if name == "sd":
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        pipe.scheduler = tiny_pipelines.diffusers.EulerDiscreteScheduler(**betas)
        full, jump = {"timesteps": [900, 700, 500, 300, 100]}, {"timesteps": [900, 700, 300, 100]}
    else:
        pipe.scheduler = tiny_pipelines.diffusers.FlowMatchEulerDiscreteScheduler()
        full, jump = {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]}, {"sigmas": [1.0, 0.8, 0.4, 0.2]}
    expected = run(pipe, name, 4, **jump)
    epd.accelerate(pipe, epd.Reuse((2,)))
    assert_same(run(pipe, name, 5, **full), expected, 1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_slope_is_reused_whatever_is_predicted(prediction: str, kind: str) -> None:
    """The stock run and the enabled one on its sigmas reuse the same slope."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    betas |= {"solver_order": 1} if "DPM" in kind else {"set_alpha_to_one": True, "clip_sample": False}
    betas |= {"algorithm_type": "dpmsolver++"} if "DPM" in kind else {}
    betas = {k: v for k, v in betas.items() if kind == "DDIMScheduler" or k not in ("set_alpha_to_one", "clip_sample")}
    pipe = build("sd")
    pipe.scheduler = getattr(tiny_pipelines.diffusers, kind)(
        **betas, prediction_type=prediction, timestep_spacing="trailing"
    )
    stock = pipe.scheduler
    epd.accelerate(pipe, epd.Reuse((1, 3)))
    made = run(pipe, "sd", 5)
    pipe.scheduler = epd.EPDScheduler.from_config(stock.config, timestep_spacing="trailing")
    again = run(pipe, "sd", 5)
    assert_same(made, again, 2e-3 if kind != "DDIMScheduler" else 1e-4)


def test_the_plan_of_digits_and_what_is_saved() -> None:
    model = digits(2.0)
    table = table_for("dit", "epd")
    noise, denoiser = epd.unit_noise([0, 1], model.shape), model.for_seeds([0, 1])
    with torch.no_grad():
        expected = epd.solve(table.rule(), denoiser, noise, table.sigmas)
        epd.accelerate(model, epd.Reuse((1,), "fan"))
        with epd.measure(model) as measured:
            reused = epd.solve(table.rule(), denoiser, noise, table.sigmas)
        epd.decelerate(model)
        with epd.measure(model) as dense:
            assert torch.equal(epd.solve(table.rule(), denoiser, noise, table.sigmas), expected)
    assert not torch.equal(reused, expected)
    assert measured.cost.dense == dense.cost.dense == 2 * 2 * 16
    assert measured.cost.rows == measured.cost.blocks == 2 * 2 * 13
    assert measured.flops * 16 == dense.flops * 13
    assert measured.store == noise.nbytes and dense.store == 0


@pytest.mark.parametrize(
    ("steps", "where", "text"), [((), "all", "give one"), ((-1,), "all", "from 0"), ((1,), "x", "'fan'")]
)
def test_settings_are_checked(steps: tuple[int, ...], where: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        epd.Reuse(steps, where)  # type: ignore[arg-type]
