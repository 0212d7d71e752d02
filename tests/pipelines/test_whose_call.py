"""The fan hook changes the calls of its own run and no others: interruption, threads, copies, collection, callbacks."""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import torch
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import build, diffusers, network, run
from torch import Tensor

import epd

BARE: dict[str, Any] = {
    "sample": torch.linspace(-1, 1, 2 * 256).reshape(2, 4, 8, 8),
    "timestep": torch.tensor(5.0),
    "encoder_hidden_states": torch.ones(2, 7, 32),
}


class Stop(Exception):
    """Ends a run from a callback or from inside its network."""


def stop_at(call: int) -> Any:  # noqa: ANN401 - a callback of diffusers
    def on_step_end(pipe: object, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == call:
            raise Stop
        return {}

    return on_step_end


def interrupt(pipe: Any, call: int, inside: bool) -> None:  # noqa: ANN401
    """Ends a run at this network call: in the callback after it, or in the network itself (out of memory)."""
    if not inside:
        with pytest.raises(Stop):
            run(pipe, "sd", 4, callback_on_step_end=stop_at(call))
        return
    calls: list[int] = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == call + 1:
            raise Stop

    handle = pipe.unet.mid_block.register_forward_hook(fail)
    try:
        with pytest.raises(Stop):
            run(pipe, "sd", 4)
    finally:
        handle.remove()


def same_parts(pipe: Any, scheduler: Any) -> Any:  # noqa: ANN401
    """Another pipeline on the same network."""
    parts = {**pipe.components, "scheduler": scheduler}
    other = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("kind", ["epd", "plugin with afs", "one-call with afs"])
def test_after_an_interrupted_run_the_network_is_bare(kind: str, call: int, inside: bool) -> None:
    pipe = build("sd")
    stock = pipe.scheduler
    before, expected = pipe.unet(**BARE).sample, run(pipe, "sd", 3)
    epd.enable(pipe, table_for("sd", kind))
    learned = run(pipe, "sd", 4)
    interrupt(pipe, call, inside)
    assert torch.equal(pipe.unet(**BARE).sample, before)
    assert torch.equal(run(same_parts(pipe, copy.deepcopy(stock)), "sd", 3), expected)
    assert torch.equal(run(pipe, "sd", 4), learned)


def test_a_scheduler_copied_after_an_interrupted_run_works() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    expected = run(pipe, "sd", 4)
    interrupt(pipe, 2, False)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    assert torch.equal(run(pipe, "sd", 4), expected)


def test_calls_of_a_callback_are_not_the_run_s() -> None:
    """Inside a step the next call is a fan; a callback that looks at the network gets the network."""
    pipe = build("sd")
    other = same_parts(pipe, copy.deepcopy(pipe.scheduler))
    bare, stock = pipe.unet(**BARE).sample, run(other, "sd", 3)
    epd.enable(pipe, table_for("sd", "epd"))
    expected = run(pipe, "sd", 4)
    seen: list[Tensor] = []

    def look(pipe: Any, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        seen.append(pipe.unet(**BARE).sample)
        if index == 0:
            assert torch.equal(run(other, "sd", 3), stock)
        return {}

    assert torch.equal(run(pipe, "sd", 4, callback_on_step_end=look), expected)
    assert len(seen) == 8
    assert all(torch.equal(x, bare) for x in seen)


@pytest.mark.parametrize("learned", [True, False])
def test_another_thread_on_the_same_network_is_not_the_run(learned: bool) -> None:
    """One pipeline stops between an anchor and its fan while the other one makes a whole picture."""
    one = build("sd")
    other = same_parts(one, copy.deepcopy(one.scheduler))
    epd.enable(one, table_for("sd", "epd"))
    if learned:
        epd.enable(other, table_for("sd", "memory"))
    pictures = run(one, "sd", 4), run(other, "sd", 4)
    made: list[Tensor] = []

    def other_meanwhile(pipe: object, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            thread = threading.Thread(target=lambda: made.append(run(other, "sd", 4)))
            thread.start()
            thread.join()
        return {}

    assert torch.equal(run(one, "sd", 4, callback_on_step_end=other_meanwhile), pictures[0])
    assert torch.equal(made[0], pictures[1])


def test_a_collected_pipeline_takes_its_hook_along() -> None:
    pipe = build("sd")
    unet, other = pipe.unet, same_parts(pipe, copy.deepcopy(pipe.scheduler))
    epd.enable(pipe, table_for("sd", "epd"))
    epd.enable(other, table_for("sd", "memory"))
    assert len(unet._forward_pre_hooks) == 1  # one for both
    del pipe
    gc.collect()
    assert len(unet._forward_pre_hooks) == 1
    del other
    gc.collect()
    assert not unet._forward_pre_hooks and not unet._forward_hooks


def test_no_hook_comes_or_goes_during_a_run() -> None:
    """Torch goes through the forward hooks when a call fails: another thread's changes would hide its error."""
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    seen = []

    def note(module: object, args: object) -> None:
        seen.append(tuple(map(id, (*pipe.unet._forward_pre_hooks, *pipe.unet._forward_hooks))))

    handle = pipe.unet.conv_in.register_forward_pre_hook(note)
    with torch.no_grad():
        run(pipe, "sd", 4)
    handle.remove()
    seen.append(tuple(map(id, (*pipe.unet._forward_pre_hooks, *pipe.unet._forward_hooks))))
    assert len(seen) > 4 and len(set(seen)) == 1


def test_a_pipeline_of_the_same_network_is_left_enabled_when_another_is_disabled() -> None:
    pipe = build("sd")
    other = same_parts(pipe, copy.deepcopy(pipe.scheduler))
    for one in (pipe, other):
        epd.enable(one, table_for("sd", "epd"))
    expected = run(other, "sd", 4)
    epd.disable(pipe)
    assert epd.summary(other).placement == "batched"
    assert torch.equal(run(other, "sd", 4), expected)
    epd.disable(other)
    assert not pipe.unet._forward_pre_hooks


def test_a_copied_network_is_the_bare_network() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    expected = run(pipe, "sd", 4)
    pipe.unet = copy.deepcopy(pipe.unet)
    assert epd.summary(pipe).placement == "bare"
    assert_same(run(pipe, "sd", 4), expected)
    epd.enable(pipe, table_for("sd", "epd"))
    assert epd.summary(pipe).placement == "batched"
    assert_same(run(pipe, "sd", 4), expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_networks_that_are_told_integers(dtype: torch.dtype) -> None:
    """Some pipelines cast the time to integers: each point is told its own, cut off as it would be alone."""
    results = []
    for parallel in (True, False):
        pipe = epd.enable(build("ddpm"), table_for("ddpm", "epd"), parallel=parallel)
        pipe.unet.register_forward_pre_hook(lambda module, args: (args[0], args[1].to(dtype)), prepend=True)
        results.append(run(pipe, "ddpm", 4))
    assert_same(*results)


def test_a_loop_of_one_s_own_takes_the_points_one_after_another() -> None:
    """Outside of a pipeline's call nobody can tell whose a network call is; the result is the same."""
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    embeds = torch.ones(2, 7, 32)
    results = []
    for driven in (True, False):
        noise = torch.ones(2, 4, 8, 8)
        if driven:
            pipe.scheduler.set_timesteps(16)
            latents = noise * pipe.scheduler.init_noise_sigma
            with torch.no_grad():
                for t in pipe.scheduler.timesteps:
                    out = network(pipe)(latents, t, encoder_hidden_states=embeds).sample
                    latents = pipe.scheduler.step(out, t, latents).prev_sample
            results.append(latents)
        else:
            call = {"prompt_embeds": embeds, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
            results.append(pipe(**call, num_inference_steps=8).images)
    assert_same(*results)
