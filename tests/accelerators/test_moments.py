"""Every driver tells the same of a network call, and it is known beforehand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.accelerating import COPIES, drivers, moments, told, without_sigma
from helpers.pipeline_families import FAMILIES
from helpers.pipeline_tables import picture, table_for, variant
from helpers.tiny_pipelines import build, diffusers, run

import epd
from epd.accelerators.moment import Moment
from epd.accelerators.planned import of_scheduler, of_solve


def of_stock(steps: int, begin: int = 0, order: int = 1, **counts: int) -> list[Moment]:
    branches = counts.pop("branches")
    return [
        Moment(i // order, steps, i % order, (0,), branch, sigma=(), state=i % order == 0, **counts)
        for i in range(begin, order * steps - (order - 1))
        for branch in range(branches)
    ]


@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_recorded_moments_are_the_plan(name: str) -> None:
    pipe = build(name)
    for driver, made in drivers(name, pipe):
        if driver == "stock":
            recorded = moments(pipe, made)
            assert without_sigma(recorded) == of_stock(3, **told(name))
            assert all(a.sigma > b.sigma for a, b in zip(recorded, recorded[told(name)["branches"] :], strict=False))
        elif isinstance(pipe.scheduler, epd.EPDScheduler):
            plan = of_scheduler(pipe, **told(name))
            assert plan and moments(pipe, made) == plan
        else:  # the model's samples are two, and a guided call is doubled whoever steps it
            guided = {**told(name), "samples": 2, "copies": 2 if name == "dit" else COPIES.get(name, 2)}
            table = table_for(name, "mixed")
            plan = of_solve(table.rule(), table.sigmas, batched=driver == epd.batched.__name__, **guided)
            assert moments(pipe, made) == plan


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("kind", ["epd", "plugin with afs", "memory", "one-call with afs", "dense", "dense fan"])
def test_every_kind_of_table(kind: str, parallel: bool) -> None:
    pipe = epd.enable(build("sd"), table_for("sd", kind), parallel=parallel)
    recorded = moments(pipe, lambda: run(pipe, "sd", 4))
    assert recorded == of_scheduler(pipe, **told("sd"))
    layout = [call for step in range(4) for call in recorded if call.step == step]
    assert layout == recorded and {call.steps for call in recorded} == {4}
    table = table_for("sd", kind)
    states = [call for call in recorded if call.state]
    assert all(math.isclose(call.sigma[0], table.sigmas[call.step]) for call in states)
    assert len(states) == 4 - table.moves_first_call


def img2img(steps: int, strength: float) -> tuple[Any, Any]:
    pipe = variant(diffusers.StableDiffusionImg2ImgPipeline)
    call = {
        "prompt": ["a red fox", "fox"], "image": picture(), "strength": strength, "num_inference_steps": steps,
        "output_type": "latent", "generator": [torch.Generator().manual_seed(i) for i in range(2)],
    }  # fmt: skip
    return pipe, lambda: pipe(**call)


@pytest.mark.parametrize(
    ("scheduler", "order"), [("DDIMScheduler", 1), ("EulerDiscreteScheduler", 1), ("HeunDiscreteScheduler", 2)]
)
def test_an_image_to_image_run_begins_in_the_middle(scheduler: str, order: int) -> None:
    pipe, made = img2img(6, 0.5)
    kept = {key: pipe.scheduler.config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    pipe.scheduler = getattr(diffusers, scheduler)(**kept)
    assert without_sigma(moments(pipe, made)) == of_stock(6, 3 * order, order, **told("sd"))


@pytest.mark.parametrize(("strength", "begin"), [(0.99, 1), (0.8, 2), (0.5, 4)])
def test_a_learned_run_that_begins_in_the_middle(strength: float, begin: int) -> None:
    pipe, made = img2img(8, strength)
    epd.enable(pipe, table_for("sd", "epd"))
    plan = of_scheduler(pipe, begin, **told("sd"))
    assert plan and moments(pipe, made) == plan
    assert plan[0].slots == (0,)


def test_moments_with_custom_sigmas_another_count_and_a_second_request() -> None:
    pipe = build("sd3")
    for sigmas in ([1.0, 0.5], [0.9, 0.6, 0.3]):
        recorded = moments(pipe, lambda sigmas=sigmas: run(pipe, "sd3", len(sigmas), sigmas=sigmas))
        assert without_sigma(recorded) == of_stock(len(sigmas), **told("sd3"))
    for steps in (4, 2, 4):
        recorded = moments(pipe, lambda steps=steps: run(pipe, "sd3", steps))
        assert without_sigma(recorded) == of_stock(steps, **told("sd3"))


def test_guidance_off_is_one_copy_and_a_wan_of_one_branch() -> None:
    for name in ("sd", "wan"):
        pipe = build(name)
        recorded = moments(pipe, lambda pipe=pipe, name=name: run(pipe, name, 2, guidance_scale=1.0))
        assert without_sigma(recorded) == of_stock(2, samples=2, copies=1, branches=1)


def test_a_network_denoiser_tells_the_same() -> None:
    from epd.denoisers.digits import digits

    model, rule, sigmas = digits(2.0), epd.rules.heun(), [80.0, 10.0, 1.0, 0.1]
    denoiser, noise = model.for_seeds([0, 1, 2]), epd.unit_noise([0, 1, 2], model.shape)
    with torch.no_grad():
        recorded = moments(model, lambda: epd.solve(rule, denoiser, noise, sigmas))
        assert recorded == of_solve(rule, sigmas, samples=3, copies=2)
        limited = epd.limit_rows(model, rows=2).for_seeds([0, 1, 2])
        with pytest.raises(ValueError, match="give a larger limit of rows"):
            moments(model, lambda: epd.solve(rule, limited, noise, sigmas))
    assert [replace(now, sigma=()) for now in recorded][1] == Moment(0, 3, 1, (0,), 0, 2, 3, (), False)
    assert "dit" in FAMILIES


def test_calls_that_are_no_trajectory_s_are_not_told() -> None:
    from epd.denoisers.digits import digits

    model = digits()
    x = epd.unit_noise([0], model.shape)

    def ask() -> None:
        epd.slope(model, x, torch.tensor(1.0))
        model(x, torch.tensor(1.0))

    assert moments(model, ask) == []
