"""EPDScheduler's noise levels and configurations against the stock schedulers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.recording import normal
from helpers.schedulers import BETAS, SIGMAS, made, public
from helpers.tiny_pipelines import diffusers

from epd.pipelines.scheduler import EPDScheduler


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
    asks: list[dict[str, Any]] = [{"num_inference_steps": 5}, {"sigmas": [1.0, 0.75, 0.5, 0.25]}]
    for ask in asks:  # what pipelines pass of themselves
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
    with pytest.raises(ValueError, match="give one of"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match=r"timesteps = .* are not those of sigmas = .*: give one of them"):
        scheduler.set_timesteps(sigmas=sigmas, timesteps=times[1:])
    with pytest.raises(ValueError, match=r"timesteps = .* are not those of sigmas = .*: give one of them"):
        scheduler.set_timesteps(sigmas=sigmas, timesteps=[times[0], 0.5 * times[1], *times[2:]])
    with pytest.raises(ValueError, match="must decrease"):
        scheduler.set_timesteps(sigmas=sigmas[::-1])


def test_a_table_brings_its_own_schedule() -> None:
    scheduler = made("epd")
    own = [float(s) for s in scheduler.table.sigmas] if scheduler.table is not None else []
    counts = []
    asks: list[dict[str, Any]] = [{"num_inference_steps": 16}, {"sigmas": own}]
    for ask in [*asks, {"sigmas": own[:-1]}]:
        scheduler.set_timesteps(**ask)
        counts.append((len(scheduler.timesteps), scheduler.order))
    assert counts == [(16, 1)] * 3
    scheduler.set_timesteps(timesteps=scheduler.timesteps.tolist())
    with pytest.warns(UserWarning, match="num_inference_steps = 50, but the table has 4 steps in 16 network calls"):
        scheduler.set_timesteps(50)
    scheduler.set_timesteps(50)  # said once
    wrong: list[dict[str, Any]] = [{"sigmas": [9.0, 1.0]}, {"timesteps": [900.0, 100.0]}]
    for faulty in wrong:
        with pytest.raises(ValueError, match="not the table's own"):
            scheduler.set_timesteps(**faulty)
