"""EPDScheduler against the contract of diffusers' schedulers, in a loop of our own in place of a pipeline's."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tables
import torch
from recording import elementwise, normal
from torch import Tensor

import epd
from epd.pipelines.grids import noise_level
from epd.pipelines.scheduler import EPDScheduler

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "shift": 3.0}
SIGMAS = {"ve": [14.0, 6.0, 2.0, 0.6, 0.05], "flow": [1.0, 0.8, 0.5, 0.2, 0.02]}
TABLES = {
    "epd": tables.epd_table(),
    "plugin": tables.epd_table(order=3),
    "memory": tables.full_table(),
    "memory afs": tables.full_table(afs=True),
    "one-call": tables.full_table(calls=1),
    "one-call afs": tables.full_table(calls=1, afs=True),
    "mixed": tables.full_table(calls=[1, 2, 1, 2]),
}
RULES = ("euler", "heun", "dpm2", "ipndm", "dpmpp")
KINDS = (*RULES, *TABLES)


def table(kind: str, path: str = "ve") -> epd.Table:
    provenance = epd.Provenance(path=path)
    # Unit scales: slopes are consistent.
    changes: dict[str, Any] = {"sigmas": SIGMAS[path], "slope_scale": None, "sigma_scale": None}
    return dataclasses.replace(TABLES[kind], **changes, provenance=provenance)


def made(kind: str, path: str = "ve", **changes: Any) -> EPDScheduler:  # noqa: ANN401
    config = {**(FLOW if path == "flow" else BETAS), **changes}
    if kind in RULES:
        return EPDScheduler(rule=kind, **config)
    return EPDScheduler.from_table(table(kind, path), config)


def public(config: Any) -> dict[str, Any]:  # noqa: ANN401 - diffusers' frozen dictionary
    return {k: v for k, v in config.items() if not k.startswith("_")}


def steps(scheduler: EPDScheduler) -> int:
    return 4 if scheduler.table is None else scheduler.table.num_steps


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
        fan = scheduler.fan
        rows = scheduler.ahead(latents) if fan is not None and fan.ahead else scheduler.scale_model_input(latents, t)
        told = t if fan is None else fan.timesteps.repeat(len(rows) // fan.width)
        latents = scheduler.step(output(scheduler, rows, told), t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("placement", ["bare", "serial", "batched"])
@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_full_loop_is_solve(kind: str, path: str, placement: str) -> None:
    scheduler = made(kind, path)
    scheduler.placement = "bare" if kind in RULES else placement  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # analytic first slopes: tested below
        scheduler.set_timesteps(steps(scheduler))
    noise = normal(2, 3, 4, 4)
    done = loop(scheduler, noise * scheduler.init_noise_sigma)
    layout = scheduler._required()
    expected = epd.solve(layout.rule, elementwise, noise, layout.levels)
    # float32 timesteps are all that keeps the two apart; sigma changes by 1 % per timestep.
    torch.testing.assert_close(done, expected, rtol=1e-5, atol=1e-5)
    if kind in TABLES and placement != "bare":
        own = table(kind, path)
        solved = epd.solve(own.rule(), elementwise, noise, own.a("sigmas").tolist())
        torch.testing.assert_close(done, solved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    scheduler = made(kind, "flow")
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "EPDScheduler"
    again = EPDScheduler.from_pretrained(tmp_path)
    assert public(again.config) == public(scheduler.config)
    assert again.table == scheduler.table
    x = normal(1, 2, 4, 4)
    for one in (scheduler, again):
        one.placement = "serial"
        one.set_timesteps(4)
    assert torch.equal(loop(scheduler, x), loop(again, x))


@pytest.mark.parametrize("kind", KINDS)
def test_set_timesteps_twice(kind: str) -> None:
    scheduler = made(kind)
    scheduler.placement = "batched"
    x, results = normal(1, 2, 4, 4), []
    for _ in range(2):
        scheduler.set_timesteps(4)
        results.append((loop(scheduler, x), scheduler.timesteps, scheduler.sigmas))
    scheduler.set_timesteps(4)
    scheduler.step(output(scheduler, x, scheduler.timesteps[0]), scheduler.timesteps[0], x) if kind in RULES else None
    scheduler.set_timesteps(4)
    results.append((loop(scheduler, x), scheduler.timesteps, scheduler.sigmas))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_what_pipelines_read(kind: str) -> None:
    scheduler = made(kind)
    scheduler.placement = "batched"
    scheduler.set_timesteps(4, device="cpu")
    count = len(scheduler.timesteps)
    assert count == (scheduler.table.depth if scheduler.table is not None else {"heun": 7, "dpm2": 7}.get(kind, 4))
    assert scheduler.timesteps.dtype == torch.float32
    assert scheduler.sigmas.shape == (count + 1,)
    assert scheduler.sigmas.device.type == "cpu"
    assert scheduler.num_inference_steps == 4
    assert len(scheduler) == scheduler.config.num_train_timesteps == 1000
    assert scheduler.order * 4 >= count
    assert (scheduler.step_index, scheduler.begin_index) == (None, None)
    assert scheduler.alphas_cumprod.shape == (1000,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["euler", "epd", "one-call afs"])
def test_shapes_dtypes_and_return_types(kind: str, dtype: torch.dtype) -> None:
    scheduler = made(kind)
    scheduler.placement = "batched"
    scheduler.set_timesteps(4)
    x = normal(2, 3, 4, 4).to(dtype)
    t = scheduler.timesteps[0]
    rows = x if scheduler.fan is None else scheduler.ahead(x)
    learned_variance = torch.cat([rows, rows], dim=1)
    done = scheduler.step(learned_variance, t, x)
    widths = {"euler": 2, "epd": 6, "one-call afs": 6}
    assert done.prev_sample.shape == (widths[kind], 3, 4, 4)
    assert done.prev_sample.dtype == done.pred_original_sample.dtype == dtype
    assert done.pred_original_sample.shape == rows.shape
    scheduler.set_timesteps(4)
    for one, two in zip(done.to_tuple(), scheduler.step(rows, t, x, return_dict=False), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind: str) -> None:
    """On the meta device there is no value to wait for: reading one raises."""
    scheduler = made(kind)
    scheduler.placement = "batched"
    scheduler.set_timesteps(4, device="meta")
    latents = torch.empty(2, 3, 4, 4, device="meta")
    for t in scheduler.timesteps:
        fan = scheduler.fan
        rows = scheduler.ahead(latents) if fan is not None and fan.ahead else latents
        latents = scheduler.step(torch.empty_like(rows), t, latents).prev_sample
    assert latents.shape == (2, 3, 4, 4)


def test_half_precision_rows_cost_the_state_nothing() -> None:
    """The state is kept in float32: a constant slope that is exact in half precision arrives exactly."""
    sigmas = [1.0, 0.75, 0.5, 0.25]
    scheduler = EPDScheduler(rule="euler", **FLOW)
    scheduler.set_timesteps(sigmas=[s - 1e-4 * i for i, s in enumerate(sigmas)])
    x = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.full_like(x, 1.0), t, x).prev_sample
    assert scheduler.step_index == 4
    assert float(x.abs().max()) < 1e-7  # in bfloat16 it would be 1e-3


def test_what_is_changed_between_calls_counts() -> None:
    for kind in ("euler", "epd", "one-call afs"):
        plain, moved = made(kind), made(kind)
        for scheduler in (plain, moved):
            scheduler.placement = "serial"
            scheduler.set_timesteps(4)
        x, results = normal(1, 1, 2, 2), []
        for scheduler, changed in ((plain, False), (moved, True)):
            latents = x
            for i, t in enumerate(scheduler.timesteps):
                latents = scheduler.step(torch.zeros_like(x), t, latents).prev_sample
                if scheduler.state_width == 1 and i + 1 < len(scheduler.timesteps) and scheduler.steps_done == 2:
                    latents = latents + changed
            results.append(latents)
        # With eps = 0 the state stays: latents are x / sqrt(1 + sigma^2), changed at sigma = 2 (or the rule's own).
        assert float((results[1] - results[0]).min()) > 1, kind


@pytest.mark.parametrize("begin", range(9))
@pytest.mark.parametrize("placement", ["serial", "batched"])
@pytest.mark.parametrize("kind", TABLES)
def test_image_to_image_begins_anywhere(kind: str, placement: str, begin: int) -> None:
    """With an exact Gaussian the noise that was put in is taken out again: the result is the data's own mean."""
    scheduler = made(kind)
    scheduler.placement = placement  # type: ignore[assignment]
    scheduler.set_timesteps(4)
    if begin >= len(scheduler.timesteps):
        with pytest.raises(ValueError, match="num_inference_steps = 4"):
            scheduler.set_begin_index(begin)
        return
    scheduler.set_begin_index(begin)
    clean, noise = torch.full((2, 1, 2, 2), 0.7, dtype=torch.float64), normal(2, 1, 2, 2)
    latents = scheduler.add_noise(clean, noise, scheduler.timesteps[begin : begin + 1])
    for t in scheduler.timesteps[begin:]:
        fan = scheduler.fan
        rows = scheduler.ahead(latents) if fan is not None and fan.ahead else latents
        told = t[None] if fan is None else fan.timesteps.repeat(len(rows) // fan.width)
        sigma = noise_level(scheduler.frame, told).reshape(-1, 1, 1, 1)
        eps = (rows * (1 + sigma**2).sqrt() - 0.7) / sigma  # D = 0.7: straight trajectories, exact for any solver
        latents = scheduler.step(eps, t, latents).prev_sample
    torch.testing.assert_close(latents, clean + 0.05 * noise, rtol=0, atol=2e-4 if begin else 0.8)


def test_add_noise_is_the_stock_ones() -> None:
    clean, noise = normal(3, 2, 2), normal(3, 2, 2, seed=1)
    for times in (torch.tensor([1, 500, 998]), torch.tensor([700]), torch.tensor([3, 3, 999])):
        stock = diffusers.DDIMScheduler(**BETAS).add_noise(clean, noise, times)
        torch.testing.assert_close(made("euler").add_noise(clean, noise, times), stock, rtol=1e-6, atol=1e-6)
    flow, own = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), made("euler", "flow")
    flow.set_timesteps(10)
    flow_time = flow.timesteps[4:5].repeat(3)
    expected = flow.scale_noise(clean, flow_time, noise)
    torch.testing.assert_close(own.scale_noise(clean, flow_time, noise), expected, rtol=1e-6, atol=1e-6)
    assert own.add_noise(clean.to(torch.bfloat16), noise.to(torch.bfloat16), flow_time).dtype == torch.bfloat16


STOCK: list[Any] = [
    diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction"),
    diffusers.DDPMScheduler(),
    diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
    diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=3),
    diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0),
    diffusers.EDMEulerScheduler(sigma_max=60.0),
]


@pytest.mark.parametrize("stock", STOCK, ids=lambda s: type(s).__name__)
def test_from_config_and_back(stock: Any) -> None:  # noqa: ANN401
    own = EPDScheduler.from_config(stock.config, rule="ipndm", rule_order=2)
    flow = "Flow" in type(stock).__name__ or bool(stock.config.get("use_flow_sigmas"))
    assert own.frame.path == ("flow" if flow else "ve")
    for key, value in stock.config.items():
        if key not in ("_use_default_values", "prediction_type"):
            assert own.config[key] == value, key
    assert (own.config["rule"], own.config["rule_order"]) == ("ipndm", 2)
    kind = type(stock)
    back = kind.from_config(own.config)
    assert {k: back.config[k] for k in public(stock.config)} == public(stock.config)
    assert kind in own.compatibles or kind.__name__.startswith("FlowMatchHeun")
    again = EPDScheduler.from_config(own.config)
    assert public(again.config) == public(own.config)


def test_from_config_replaces_the_rule() -> None:
    own = made("epd")
    assert EPDScheduler.from_config(own.config, rule="heun").table is None
    assert EPDScheduler.from_config(own.config).table == own.table


@pytest.mark.parametrize("changes", [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {}])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_sigmas_of_the_diffusion_family(spacing: str, final: str, changes: dict[str, bool]) -> None:
    config = {**BETAS, "timestep_spacing": spacing, "steps_offset": 1, "final_sigmas_type": final, **changes}
    stock, own = diffusers.EulerDiscreteScheduler(**config), EPDScheduler(**config)
    for n in (1, 4, 7)[spacing == "linspace" :]:  # of one step linspace makes the cleanest; ours is the noisiest
        stock.set_timesteps(n)
        own.set_timesteps(n)
        count = len(own.sigmas)  # linspace ends on sigma_min itself: the stock one then makes an empty step
        torch.testing.assert_close(own.sigmas, stock.sigmas[:count], rtol=3e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
        {"shift": 2.0, "use_karras_sigmas": True},
    ],
)
def test_sigmas_of_the_flow_family(changes: dict[str, Any]) -> None:
    stock = diffusers.FlowMatchEulerDiscreteScheduler(**changes)
    own = EPDScheduler.from_config(stock.config)
    mu = {"mu": 0.8} if "use_dynamic_shifting" in changes else {}
    for ask in ({"num_inference_steps": 5}, {"sigmas": [1.0, 0.75, 0.5, 0.25]}):  # what pipelines pass of themselves
        stock.set_timesteps(**ask, **mu)
        own.set_timesteps(**ask, **mu)
        torch.testing.assert_close(own.sigmas, stock.sigmas, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own.timesteps, stock.timesteps, rtol=1e-5, atol=1e-4)
    if mu:
        with pytest.raises(ValueError, match="mu is None"):
            own.set_timesteps(5)


def test_unipc_flow_sigmas() -> None:
    stock = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    own = EPDScheduler.from_config(stock.config)
    stock.set_timesteps(6)
    own.set_timesteps(6)
    torch.testing.assert_close(own.sigmas, stock.sigmas, rtol=0, atol=2e-6)


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_own_sigmas_and_timesteps_are_honoured_exactly(path: str) -> None:
    scheduler, sigmas = made("euler", path), SIGMAS[path]
    scheduler.set_timesteps(sigmas=sigmas)
    assert scheduler.sigmas.tolist() == torch.tensor([*sigmas, 0.0]).tolist()
    times = scheduler.timesteps.tolist()
    scheduler.set_timesteps(sigmas=[*sigmas, 0.0])
    assert scheduler.timesteps.tolist() == times
    scheduler.set_timesteps(timesteps=times)
    assert scheduler.timesteps.tolist() == pytest.approx(times, rel=1e-6)
    for faulty in ({}, {"sigmas": sigmas, "timesteps": times}):
        with pytest.raises(ValueError, match="give one of"):
            scheduler.set_timesteps(**faulty)
    with pytest.raises(ValueError, match="must decrease"):
        scheduler.set_timesteps(sigmas=sigmas[::-1])


def test_a_table_brings_its_own_schedule() -> None:
    scheduler = made("epd")
    own = [float(s) for s in scheduler.table.a("sigmas")] if scheduler.table is not None else []
    counts = []
    for ask in ({"num_inference_steps": 4}, {"num_inference_steps": 16}, {"sigmas": own}, {"sigmas": own[:-1]}):
        scheduler.set_timesteps(**ask)
        counts.append((len(scheduler.timesteps), scheduler.order))
    assert counts == [(16, 4), (16, 1), (16, 1), (16, 1)]
    scheduler.set_timesteps(timesteps=scheduler.timesteps.tolist())
    with pytest.warns(UserWarning, match="num_inference_steps = 50, but the table has 4 steps in 16 network calls"):
        scheduler.set_timesteps(50)
    scheduler.set_timesteps(50)  # said once
    for faulty in ({"sigmas": [9.0, 1.0]}, {"timesteps": [900.0, 100.0]}):
        with pytest.raises(ValueError, match="not the table's own"):
            scheduler.set_timesteps(**faulty)


def test_without_a_hook_an_analytic_slope_is_asked_for() -> None:
    scheduler = made("memory afs")
    with pytest.warns(UserWarning, match="first slope is analytic"):
        scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 12
    scheduler.set_timesteps(4)
    scheduler.placement = "batched"
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 7


def test_pipelines_that_forget_init_noise_sigma() -> None:
    scheduler, noise, results = made("epd"), normal(1, 1, 2, 2), []
    for told in (True, False):
        scheduler.placement = "serial"
        scheduler.set_timesteps(4)
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
        (lambda: made("euler", use_beta_sigmas=True).set_timesteps(3), "use_beta_sigmas"),
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
    scheduler.set_timesteps(4)
    t: Sequence[Tensor] = list(scheduler.timesteps)
    rows = scheduler.step(x, t[0], x).prev_sample
    with pytest.raises(ValueError, match="expected 6"):
        scheduler.step(x, t[1], rows)
    with pytest.raises(ValueError, match="was handed out"):
        scheduler.step(x, t[1], x)
    scheduler.set_timesteps(4)
    loop(scheduler, x)
    with pytest.raises(ValueError, match="after the last of 8 network calls"):
        scheduler.step(x, t[0], x)
