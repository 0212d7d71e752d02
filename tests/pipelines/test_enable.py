"""enable, disable and summary: in, out, again, and what they say."""

from __future__ import annotations

import copy
import dataclasses
import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.pipeline_tables import SMALL, assert_same, picture, seeds, table_for, variant
from helpers.tiny_pipelines import build, diffusers, network, run
from torch import Tensor

import epd
from epd.pipelines.enable import on_states


def test_pipelines_of_the_same_components_share_the_solver() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with torch.no_grad():
        assert torch.isfinite(other(**SMALL, image=picture(), num_inference_steps=8, **seeds())[0]).all()
    before = run(pipe, "sd", 4)
    epd.disable(pipe)
    assert not network(pipe)._forward_pre_hooks
    epd.enable(pipe, table_for("sd", "epd"))
    assert torch.equal(run(pipe, "sd", 4), before)


@pytest.mark.parametrize("kind", ["epd", "plugin with afs", "one-call with afs", "mixed", "dense", "dense fan"])
@pytest.mark.parametrize("parallel", [True, False])
def test_callbacks(kind: str, parallel: bool) -> None:
    pipe, table = build("sd"), table_for("sd", kind)
    epd.enable(pipe, table, parallel=parallel)
    everything: list[Tensor] = []
    states: list[tuple[int, Tensor]] = []

    def watch(pipe: object, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        everything.append(kwargs["latents"])
        return {}

    def see(pipe: object, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        states.append((step, kwargs["latents"].clone()))
        return {"latents": kwargs["latents"]}

    plain = run(pipe, "sd", 4, callback_on_step_end=watch)
    assert torch.equal(run(pipe, "sd", 4, callback_on_step_end=on_states(see)), plain)
    assert [n for n, _ in states] == [0, 1, 2, 3][table.calls[0] == 0 :]
    assert {len(x) for _, x in states} == {len(x) for x in everything} == {2}
    assert torch.equal(states[-1][1], plain)
    assert all(torch.equal(everything[i], x) for i, (_, x) in zip(epd.summary(pipe).states, states, strict=True))

    def change(pipe: object, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] + (step == 1)}

    assert not torch.allclose(run(pipe, "sd", 4, callback_on_step_end=on_states(change)), plain, atol=0.1)
    epd.disable(pipe)
    indices: list[int] = []
    run(pipe, "sd", 3, callback_on_step_end=on_states(lambda pipe, i, t, kwargs: indices.append(i) or {}))
    assert indices == [0, 1, 2]


def test_enable_again_and_disable_twice() -> None:
    pipe, fresh = build("sd"), build("sd")
    stock = pipe.scheduler
    for kind in ("epd", "memory", "memory"):
        assert epd.enable(pipe, table_for("sd", kind)) is pipe
        assert len(network(pipe)._forward_pre_hooks) == 1
    assert torch.equal(run(pipe, "sd", 4), run(epd.enable(fresh, table_for("sd", "memory")), "sd", 4))
    for _ in range(2):
        assert epd.disable(pipe).scheduler is stock
    assert not network(pipe)._forward_pre_hooks


def test_a_scheduler_that_was_put_in_since_stays() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    pipe.scheduler = other = diffusers.EulerDiscreteScheduler(**tiny_pipelines.BETAS)
    run(pipe, "sd", 3)  # the hook has nothing to say to it
    assert not epd.summary(pipe).enabled
    epd.disable(pipe)
    assert pipe.scheduler is other
    assert not network(pipe)._forward_pre_hooks


def test_a_loaded_scheduler_brings_its_table() -> None:
    pipe, table = build("sd"), table_for("sd", "epd")
    pipe.scheduler = mine = epd.EPDScheduler.from_table(table, pipe.scheduler.config)
    bare = run(pipe, "sd", 4)
    epd.enable(pipe)
    assert epd.summary(pipe).placement == "batched"
    assert_same(run(pipe, "sd", 4), bare)
    assert epd.disable(pipe).scheduler is mine
    with pytest.raises(ValueError, match="DDIMScheduler, brings no table"):
        epd.enable(build("sd"))


def test_the_network_by_itself_is_untouched() -> None:
    """Between runs the network may be called by anybody, for instance by epd.from_pipeline."""
    pipe = build("sd")
    x = {"sample": torch.ones(3, 4, 8, 8), "timestep": torch.tensor(5.0), "encoder_hidden_states": torch.ones(3, 7, 32)}
    before = pipe.unet(**x).sample
    epd.enable(pipe, table_for("sd", "plugin with afs"))
    assert torch.equal(pipe.unet(**x).sample, before)
    run(pipe, "sd", 4)
    assert torch.equal(pipe.unet(**x).sample, before)


def test_an_interrupted_run_leaves_nothing_behind() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    expected = run(pipe, "sd", 4)

    def stop(pipe: Any, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, "sd", 4, callback_on_step_end=stop)
    assert torch.equal(run(pipe, "sd", 4), expected)


def test_summary() -> None:
    pipe = build("sd")
    assert str(epd.summary(pipe)) == "DDIMScheduler; no learned solver is enabled"
    epd.enable(pipe, table_for("sd", "plugin with afs"))
    out = epd.summary(pipe)
    assert (out.steps, out.depth, out.nfe, out.width, out.placement) == (4, 7, 15, 3, "batched")
    assert (out.states, out.networks) == ((0, 2, 4, 6), ("unet",))
    assert "4 steps, 7 sequential network calls of up to 3 rows" in str(out)
    assert epd.summary(epd.enable(pipe, table_for("sd", "one-call with afs"))).states == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 3.0}, "guidance_scale = 7.5, but the table was learned at 3"),
        ({"resolution": (512, 512)}, r"\(64, 64\) pixels, but the table was learned at \(512, 512\)"),
        ({"prediction": "v_prediction"}, "'v_prediction', this network's is 'epsilon'"),
        ({"model": "somebody/else"}, "learned for 'somebody/else', this pipeline is 'me/mine'"),
    ],
)
def test_a_table_of_another_setting_is_told_apart(changes: dict[str, Any], message: str) -> None:
    pipe = build("sd")
    pipe.register_to_config(_name_or_path="me/mine")
    table = dataclasses.replace(table_for("sd", "epd"), provenance=epd.Provenance(**changes))
    with pytest.warns(UserWarning, match=message):
        epd.enable(pipe, table)
        run(pipe, "sd", 4)
    run(pipe, "sd", 4)  # once


def test_a_guidance_that_is_an_argument_alone_is_told_apart_too() -> None:
    """DiT's pipeline does not keep what it was called with, and its default is not 1."""
    pipe = epd.enable(epd.digits_pipeline(), Path(epd.__file__).parents[1] / "experiments/results/digits_5calls.json")
    pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(class_labels=[3], guidance_scale=1.0, num_inference_steps=5)
    with pytest.warns(UserWarning, match="guidance_scale = 4, but the table was learned at 1"):
        pipe(class_labels=[3], num_inference_steps=5)


def test_what_is_no_pipeline_table_or_accelerator_is_told_by_its_kind() -> None:
    pipe, table = build("sd"), table_for("sd", "epd")
    for wrong in (None, pipe.unet):
        with pytest.raises(TypeError, match=f"{type(wrong).__name__} is no pipeline of diffusers: give one"):
            epd.enable(wrong, table)
    with pytest.raises(TypeError, match="an epd.Table, a path or a name, no dict: Table.from_dict reads a dict"):
        epd.enable(pipe, table.to_dict())  # type: ignore[arg-type]
    for wrong, said in (("reuse", "'reuse'"), (epd.FirstBlock, "the class FirstBlock"), (None, "None")):
        with pytest.raises(TypeError, match=f"{said} is no accelerator: give one with its settings"):
            epd.accelerate(pipe, wrong)  # type: ignore[arg-type]
    assert not epd.summary(pipe).enabled and not epd.summary(pipe).accelerated


def test_what_cannot_work() -> None:
    other = dataclasses.replace(table_for("sd", "epd"), provenance=epd.Provenance(path="ve"))
    with pytest.raises(ValueError, match="learned on the path 've', this pipeline's is 'flow'"):
        epd.enable(build("sd3"), other)
    with pytest.warns(UserWarning, match="starts at sigma 14, but this network was trained up to"):
        epd.enable(
            variant(
                diffusers.StableDiffusionPipeline,
                scheduler=diffusers.DDIMScheduler(beta_end=0.01, steps_offset=1, clip_sample=False),
            ),
            other,
        )
    with pytest.raises(epd.TableError, match="no published table is named"):
        epd.enable(build("sd"), "no-such-table")
    pipe = build("sd")
    with pytest.raises(ValueError, match="begin_index = 25 is beyond"), pytest.warns(UserWarning):
        img2img = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        epd.enable(img2img, table_for("sd", "epd"))
        img2img(**SMALL, image=picture(), num_inference_steps=50, strength=0.5)


def test_a_published_table_by_name() -> None:
    pipe = build("sd")
    epd.enable(pipe, "sd15-rdpo-10x2")
    assert epd.summary(pipe).steps == len(epd.named_table("sd15-rdpo-10x2").sigmas) - 1  # type: ignore[arg-type]


def test_pipelines_are_not_kept_alive() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    reference = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert reference() is None


def test_schedulers_can_be_copied_between_runs() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    expected = run(pipe, "sd", 4)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    assert_same(run(pipe, "sd", 4), expected)
