"""Runs in two parts: Stable Diffusion XL's base and its refiner."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from helpers.pipeline_families import FAMILIES, SEEDS, assert_same
from helpers.pipeline_tables import table_for
from helpers.tiny_pipelines import build, diffusers
from torch import Tensor

import epd
from epd.pipelines.cuts import calls_before, require_whole_steps
from epd.pipelines.run import Call
from epd.pipelines.scheduler import EPDScheduler

KINDS = ("epd", "plugin with afs", "memory", "one-call with afs", "mixed", "dense", "dense fan")


def base_and_refiner() -> tuple[Any, Any]:
    """With the same weights, so that both together are the base alone; each with a network and scheduler of its own."""
    base, other = build("sdxl"), build("sdxl")
    other.register_modules(image_encoder=None, feature_extractor=None)
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**other.components, add_watermarker=False)
    refiner.set_progress_bar_config(disable=True)
    return base, refiner


def in_two_parts(base: Any, refiner: Any, number: int, cut: float) -> tuple[Tensor, list[int]]:  # noqa: ANN401
    """The result, and how often each network was called."""
    made = [0, 0]

    def count(part: int) -> Any:  # noqa: ANN401 - a hook
        def hook(*_: object) -> None:
            made[part] += 1

        return hook

    handles = [pipe.unet.register_forward_hook(count(i)) for i, pipe in enumerate((base, refiner))]
    call = FAMILIES["sdxl"].call(SEEDS, number, 4.0)
    with torch.no_grad():
        first = base(**call, denoising_end=cut)[0]
        assert len(first) == len(SEEDS)
        call = {k: v for k, v in call.items() if k not in ("height", "width")}
        result = refiner(**call, image=first, denoising_start=cut)[0]
    for handle in handles:
        handle.remove()
    return result, made


def cuts(scheduler: Any, whole: bool) -> dict[int, float]:  # noqa: ANN401
    """By number of calls before it: in the middle of the timesteps between two calls. At a state, or not."""
    times = [call.timestep[0] for call in scheduler.calls]
    return {
        i: 1 - (min(times[:i]) + times[i]) / 2 / len(scheduler)
        for i, call in enumerate(scheduler.calls)
        if i and call.opens == whole and times[i] < min(times[:i]) - 2
    }


@pytest.mark.parametrize(
    ("kind", "parallel"), [*((kind, False) for kind in KINDS), ("epd", True), ("memory", True), ("mixed", True)]
)
def test_base_and_refiner_are_one_run_when_cut_between_two_steps(kind: str, parallel: bool) -> None:
    base, refiner = (epd.enable(pipe, table_for("sdxl", kind), parallel) for pipe in base_and_refiner())
    calls = epd.summary(base).depth
    whole = base(**FAMILIES["sdxl"].call(SEEDS, calls, 4.0))[0]
    before, cut = list(cuts(base.scheduler, whole=True).items())[-1]
    result, made = in_two_parts(base, refiner, calls, cut)
    assert made == [before, calls - before]
    assert torch.isfinite(result).all()
    if not base.scheduler.table.columns:  # remembered slopes are not handed on
        assert_same(result, whole)


def calls_told(times: tuple[float, ...]) -> list[Call]:
    """A step of two calls, then two of one."""
    places = ((0, 0), (0, 1), (1, 0), (2, 0))
    return [Call(step, ask, (0,), *[(time,)] * 6) for (step, ask), time in zip(places, times, strict=True)]


@pytest.mark.parametrize("times", [(600.0, 700.0, 300.0, 200.0), (300.0, 200.0, 800.0, 900.0)])
def test_an_end_is_named_whatever_order_the_timesteps_have(times: tuple[float, ...]) -> None:
    """Pipelines count the entries that are noisier than the cut."""
    calls = calls_told(times)
    inside = 1 - sum(sorted(times)[-2:]) / 2 / 1000
    with pytest.raises(ValueError, match="cuts the table's step 0 in two: give") as said:
        require_whole_steps(inside, calls, 1000)
    ends = [float(text) for text in str(said.value).split("give ")[1].split(" or ")]
    assert sorted(calls_before(end, times, 1000) for end in ends) == [2, 3]


def test_two_calls_at_one_timestep_cannot_be_cut_apart() -> None:
    with pytest.raises(ValueError, match="step 0 in two: no end between two steps can be had"):
        require_whole_steps(0.5, calls_told((900.0, 300.0, 300.0, 300.0)), 1000)


def test_the_refiner_begins_right_whatever_number_it_is_called_with() -> None:
    base, refiner = (epd.enable(pipe, table_for("sdxl", "epd")) for pipe in base_and_refiner())
    whole = base(**FAMILIES["sdxl"].call(SEEDS, 8, 4.0))[0]
    for cut in cuts(base.scheduler, whole=True).values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert_same(in_two_parts(base, refiner, 4, cut)[0], whole)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("kind", ["epd", "plugin with afs", "mixed"])
def test_a_cut_inside_a_step_is_refused_with_the_nearest_ones(kind: str, parallel: bool) -> None:
    base, refiner = (epd.enable(pipe, table_for("sdxl", kind), parallel) for pipe in base_and_refiner())
    calls = epd.summary(base).depth
    base.scheduler.placement = epd.summary(base).placement
    base.scheduler.set_timesteps(calls)
    allowed = cuts(base.scheduler, whole=True)
    before, cut = list(cuts(base.scheduler, whole=False).items())[1]
    step = base.scheduler.calls[before].step
    with pytest.raises(ValueError, match=rf"denoising_end = {cut:g} cuts the table's step {step} ") as said:
        in_two_parts(base, refiner, calls, cut)
    for text in re.findall(r"0\.\d+", str(said.value).split("give")[1]):
        number = calls_before(float(text), [c.timestep[0] for c in base.scheduler.calls], 1000)
        assert base.scheduler.calls[number].opens
        assert in_two_parts(base, refiner, calls, float(text))[1] == [number, calls - number]
        assert number in allowed


def test_a_refiner_that_begins_inside_a_step_goes_on_to_its_end() -> None:
    refiner = base_and_refiner()[1]
    epd.enable(refiner, table_for("sdxl", "epd"))
    refiner.scheduler.placement = "batched"
    refiner.scheduler.set_timesteps(8)
    before, cut = list(cuts(refiner.scheduler, whole=False).items())[1]
    call = {k: v for k, v in FAMILIES["sdxl"].call(SEEDS, 8, 4.0).items() if k not in ("height", "width")}
    result = refiner(**call, image=torch.zeros(2, 4, 8, 8), denoising_start=cut)[0]
    assert result.shape == (2, 4, 8, 8)
    assert refiner.scheduler.begin_index == before
    assert refiner.scheduler.steps_done == 4


@pytest.mark.parametrize("number", [0.5, 0.25, 1.0])
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_strength_is_the_part_of_the_calls(name: str, number: float) -> None:
    parts = build(name).components
    kinds = {"sdxl": diffusers.StableDiffusionXLImg2ImgPipeline, "sd3": diffusers.StableDiffusion3Img2ImgPipeline}
    pipe = kinds[name](**{k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")})
    pipe.set_progress_bar_config(disable=True)
    epd.enable(pipe, table_for(name, "epd"))
    family = FAMILIES[name]
    call = {k: v for k, v in family.call(SEEDS, 8, 4.0).items() if k not in ("height", "width")}
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pipe(**call, image=image, strength=number)
    assert pipe.scheduler.begin_index == 8 - 8 * number
    assert pipe.scheduler.calls[pipe.scheduler.begin_index].opens
    assert pipe.scheduler.steps_done == 4


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("rule", ["euler", "heun", "dpm2"])
def test_5_a_refiner_begins_where_the_state_is_with_a_rule_of_two_calls(rule: str, final: str) -> None:
    """Pipelines shift the begin of schedulers of order 2 by one call, and 2N calls are not 2N - 1."""
    base, refiner = base_and_refiner()
    for pipe in (base, refiner):
        pipe.scheduler = EPDScheduler.from_config(pipe.scheduler.config, rule=rule, final_sigmas_type=final)
    states: list[Tensor] = []

    def keep(pipe: Any, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        states.append(kwargs["latents"])
        return {}

    whole = base(**FAMILIES["sdxl"].call(SEEDS, 4, 4.0), callback_on_step_end=keep)[0]
    times = [call.timestep[0] for call in base.scheduler.calls]
    opening = [i for i, call in enumerate(base.scheduler.calls) if i and call.opens]
    call = {k: v for k, v in FAMILIES["sdxl"].call(SEEDS, 4, 4.0).items() if k not in ("height", "width")}
    for index in opening:
        noisier = min(time for time in times[:index] if time > times[index])
        cut = 1 - (noisier + times[index]) / 2 / len(base.scheduler)
        result = refiner(**call, image=states[index - 1], denoising_start=cut)[0]
        assert_same(result, whole)


def test_a_strength_of_no_call_says_which_is_the_least() -> None:
    """The number of steps is right already: to advise it again would help nobody."""
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**build("sd").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    epd.enable(pipe, table_for("sd", "epd"))
    call = {k: v for k, v in FAMILIES["sd"].call(SEEDS, 8, 4.0).items() if k not in ("height", "width")}
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="begin_index = 8 is beyond the 8 .* a strength of at least 1/8"):
        pipe(**call, image=image, strength=0.1)
    assert pipe(**call, image=image, strength=1 / 8)[0].shape == (2, 4, 8, 8)
