"""EPDScheduler against the contract of diffusers' schedulers, in a loop of our own in place of a pipeline's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.recording import elementwise, normal
from helpers.schedulers import BETAS, FLOW, KINDS, RULES, TABLES, calls, made, public, table
from torch import Tensor

import epd
from epd.pipelines.exchange import EPDSchedulerOutput
from epd.pipelines.grids import noise_level
from epd.pipelines.scheduler import EPDScheduler


def stepped(scheduler: EPDScheduler, output: Tensor, t: Tensor, latents: Tensor) -> Tensor:
    return scheduler.step(output, t, latents, return_dict=False)[0]


def output(scheduler: EPDScheduler, latents: Tensor, timestep: Tensor) -> Tensor:
    """What a network would predict at these rows whose denoised states are those of `elementwise`."""
    sigma = noise_level(scheduler.frame, timestep.reshape(-1)).expand(len(latents))
    skip, out, scale, _ = (
        c.to(latents.dtype).reshape(-1, *[1] * (latents.ndim - 1)) for c in scheduler.frame.precondition(sigma)
    )
    x = latents / scale
    return (elementwise(x, sigma) - skip * x) / out


def loop(scheduler: EPDScheduler, latents: Tensor, begin: int = 0) -> Tensor:
    """A pipeline's denoising loop; fans as the hook makes them."""
    for t in scheduler.timesteps[begin:]:
        fan = scheduler.wide_call
        rows = scheduler.spread(latents) if fan is not None else scheduler.scale_model_input(latents, t)
        told = t if fan is None else fan.timesteps.repeat(len(rows) // fan.width)
        latents = stepped(scheduler, output(scheduler, rows, told), t, latents)
    return latents


@pytest.mark.parametrize("placement", ["bare", "serial", "batched"])
@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_full_loop_is_solve(kind: str, path: str, placement: str) -> None:
    scheduler = made(kind, path)
    scheduler.placement = "bare" if kind in RULES else placement  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # analytic first slopes: tested below
        scheduler.set_timesteps(calls(scheduler))
    noise = normal(2, 3, 4, 4)
    done = loop(scheduler, noise * scheduler.init_noise_sigma)
    layout = scheduler._required()
    expected = epd.solve(layout.rule, elementwise, noise, layout.levels)
    # float32 timesteps are all that keeps the two apart; sigma changes by 1 % per timestep.
    torch.testing.assert_close(done, expected, rtol=1e-5, atol=1e-5)
    if kind in TABLES and (placement != "bare" or "afs" not in kind):  # without a hook AFS asks for its slope
        own = table(kind, path)
        solved = epd.solve(own.rule(), elementwise, noise, own.sigmas.tolist())
        torch.testing.assert_close(done, solved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    scheduler = made(kind, "flow")
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "EPDScheduler"
    again = EPDScheduler.from_pretrained(tmp_path)
    assert isinstance(again, EPDScheduler)
    assert public(again.config) == public(scheduler.config)
    assert again.table == scheduler.table
    x = normal(1, 2, 4, 4)
    for one in (scheduler, again):
        one.placement = "serial"
        one.set_timesteps(calls(one))
    assert torch.equal(loop(scheduler, x), loop(again, x))


@pytest.mark.parametrize("kind", KINDS)
def test_set_timesteps_twice(kind: str) -> None:
    scheduler = made(kind)
    scheduler.placement = "batched"
    x, results = normal(1, 2, 4, 4), []
    for _ in range(2):
        scheduler.set_timesteps(calls(scheduler))
        results.append((loop(scheduler, x), scheduler.timesteps, scheduler.sigmas))
    scheduler.set_timesteps(calls(scheduler))
    scheduler.step(output(scheduler, x, scheduler.timesteps[0]), scheduler.timesteps[0], x) if kind in RULES else None
    scheduler.set_timesteps(calls(scheduler))
    results.append((loop(scheduler, x), scheduler.timesteps, scheduler.sigmas))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_what_pipelines_read(kind: str) -> None:
    scheduler = made(kind)
    scheduler.placement = "batched"
    scheduler.set_timesteps(calls(scheduler), device="cpu")
    count = len(scheduler.timesteps)
    assert count == (scheduler.table.depth if scheduler.table is not None else {"heun": 7, "dpm2": 7}.get(kind, 4))
    assert scheduler.timesteps.dtype == torch.float32
    assert scheduler.sigmas.shape == (count + 1,)
    assert scheduler.sigmas.device.type == "cpu"
    assert scheduler.num_inference_steps == (4 if kind in RULES else count)
    assert len(scheduler) == scheduler.config["num_train_timesteps"] == 1000
    assert scheduler.order == (2 if kind in ("heun", "dpm2") else 1)
    assert (scheduler.step_index, scheduler.begin_index) == (None, None)
    assert scheduler.alphas_cumprod.shape == (1000,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["euler", "epd", "one-call afs"])
def test_shapes_dtypes_and_return_types(kind: str, dtype: torch.dtype) -> None:
    scheduler = made(kind)
    scheduler.placement = "batched"
    scheduler.set_timesteps(calls(scheduler))
    x = normal(2, 3, 4, 4).to(dtype)
    t = scheduler.timesteps[0]
    rows = x if scheduler.wide_call is None else scheduler.spread(x)
    learned_variance = torch.cat([rows, rows], dim=1)
    done = scheduler.step(learned_variance, t, x)
    assert isinstance(done, EPDSchedulerOutput)
    assert done.prev_sample.shape == (2, 3, 4, 4)  # whatever the next call evaluates
    assert done.prev_sample.dtype == done.pred_original_sample.dtype == dtype
    assert done.pred_original_sample.shape == rows.shape
    scheduler.set_timesteps(calls(scheduler))
    for one, two in zip(done.to_tuple(), scheduler.step(rows, t, x, return_dict=False), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind: str) -> None:
    """On the meta device there is no value to wait for: reading one raises."""
    scheduler = made(kind)
    scheduler.placement = "batched"
    scheduler.set_timesteps(calls(scheduler), device="meta")
    latents = torch.empty(2, 3, 4, 4, device="meta")
    for t in scheduler.timesteps:
        fan = scheduler.wide_call
        rows = scheduler.spread(latents) if fan is not None else latents
        latents = stepped(scheduler, torch.empty_like(rows), t, latents)
    assert latents.shape == (2, 3, 4, 4)


@pytest.mark.parametrize("copied", [False, True])
def test_half_precision_rows_cost_the_state_nothing(copied: bool) -> None:
    """The state is kept in float32: a constant slope that is exact in half precision arrives exactly."""
    sigmas = [1.0, 0.75, 0.5, 0.25]
    scheduler = EPDScheduler(rule="euler", **FLOW)
    scheduler.set_timesteps(sigmas=[s - 1e-4 * i for i, s in enumerate(sigmas)])
    x = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    for t in scheduler.timesteps:
        x = stepped(scheduler, torch.full_like(x, 1.0), t, x.clone() if copied else x)
    assert scheduler.step_index == 4
    assert float(x.abs().max()) < 1e-7  # in bfloat16 it would be 1e-3


def test_what_is_changed_between_calls_counts() -> None:
    for kind in ("euler", "epd", "one-call afs"):
        plain, moved = made(kind), made(kind)
        for scheduler in (plain, moved):
            scheduler.placement = "serial"
            scheduler.set_timesteps(calls(scheduler))
        x, results = normal(1, 1, 2, 2), []
        for scheduler, changed in ((plain, False), (moved, True)):
            latents = x
            for i, t in enumerate(scheduler.timesteps):
                latents = stepped(scheduler, torch.zeros_like(x), t, latents)
                if scheduler.at_state and i + 1 < len(scheduler.timesteps) and scheduler.steps_done == 2:
                    latents = latents + changed
            results.append(latents)
        # With eps = 0 the state stays: latents are x / sqrt(1 + sigma^2), changed at sigma = 2 (or the rule's own).
        assert float((results[1] - results[0]).min()) > 1, kind


@pytest.mark.filterwarnings("ignore:the table's first slope is analytic")
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("begin", range(9))
@pytest.mark.parametrize("placement", ["bare", "serial", "batched"])
@pytest.mark.parametrize("kind", TABLES)
def test_image_to_image_begins_anywhere(kind: str, placement: str, begin: int, told: bool) -> None:
    """With an exact Gaussian the noise that was put in is taken out again: the result is the data's own mean."""
    scheduler = made(kind)
    scheduler.placement = placement  # type: ignore[assignment]
    scheduler.set_timesteps(calls(scheduler))
    if begin >= len(scheduler.timesteps):
        with pytest.raises(ValueError, match=f"num_inference_steps = {len(scheduler.timesteps)}"):
            scheduler.set_begin_index(begin)
        return
    if told:  # some pipelines never say
        scheduler.set_begin_index(begin)
    clean, noise = torch.full((2, 1, 2, 2), 0.7, dtype=torch.float64), normal(2, 1, 2, 2)
    latents = scheduler.add_noise(clean, noise, scheduler.timesteps[begin : begin + 1])
    for t in scheduler.timesteps[begin:]:
        fan = scheduler.wide_call
        rows = scheduler.spread(latents) if fan is not None else latents
        times = t[None] if fan is None else fan.timesteps.repeat(len(rows) // fan.width)
        sigma = noise_level(scheduler.frame, times).reshape(-1, 1, 1, 1)
        eps = (rows * (1 + sigma**2).sqrt() - 0.7) / sigma  # D = 0.7: straight trajectories, exact for any solver
        latents = stepped(scheduler, eps, t, latents)
    torch.testing.assert_close(latents, clean + 0.05 * noise, rtol=0, atol=2e-4 if begin else 0.8)


def test_without_a_hook_an_analytic_slope_is_asked_for() -> None:
    scheduler = made("memory afs")
    with pytest.warns(UserWarning, match="first slope is analytic"):
        scheduler.set_timesteps(calls(scheduler))
    assert len(scheduler.timesteps) == 12
    scheduler.set_timesteps(calls(scheduler))
    scheduler.placement = "batched"
    scheduler.set_timesteps(calls(scheduler))
    assert len(scheduler.timesteps) == 7


def test_pipelines_that_forget_init_noise_sigma() -> None:
    scheduler, noise, results = made("epd"), normal(1, 1, 2, 2), []
    for told in (True, False):
        scheduler.placement = "serial"
        scheduler.set_timesteps(calls(scheduler))
        results.append(loop(scheduler, noise * scheduler.init_noise_sigma if told else noise))
    torch.testing.assert_close(*results)
    assert scheduler._start_scale == pytest.approx(14 / 197**0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EPDScheduler(rule="rk4"), "rule = 'rk4' is unknown"),
        (lambda: EPDScheduler(rule="table"), "without a table"),
        (lambda: EPDScheduler(rule="euler", table=table("epd").to_dict()), "with a table"),
        (lambda: EPDScheduler.from_table(table("epd", "flow"), BETAS), "learned on the path 'flow'"),
        (lambda: EPDScheduler.from_table(TABLES["epd"], FLOW), "starts at sigma 40, a flow at 1"),
        (lambda: made("euler").set_timesteps(0), "must be at least 1"),
        (lambda: made("euler").set_timesteps(1001), "1..1000"),
        (lambda: made("euler", timestep_spacing="odd").set_timesteps(3), "timestep_spacing = 'odd'"),
        (lambda: made("euler").step(normal(1, 1), 3.0, normal(1, 1)), "call set_timesteps first"),
        (lambda: EPDScheduler.from_config(None), "config is None"),
    ],
)
def test_errors(make: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        make()


def test_errors_of_step() -> None:
    scheduler, x = made("epd"), normal(2, 1, 2, 2)
    scheduler.placement = "batched"
    scheduler.set_timesteps(calls(scheduler))
    t: Sequence[Tensor] = list(scheduler.timesteps)
    rows = stepped(scheduler, x, t[0], x)
    with pytest.raises(ValueError, match="expected 6"):
        scheduler.step(x, t[1], rows)
    with pytest.raises(ValueError, match="was handed out"):
        scheduler.step(x, t[1], x[:1])
    with pytest.raises(ValueError, match="is not what was handed out.*parallel=False"):
        scheduler.spread(x[:1])
    scheduler.set_timesteps(calls(scheduler))
    loop(scheduler, x)
    with pytest.raises(ValueError, match="after the last of 8 network calls"):
        scheduler.step(x, t[0], x)
