"""One configuration, however it arrives: a file, a live scheduler, one that carries along another's keys, a copy."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tables
from helpers.recording import normal
from helpers.schedulers import calls
from helpers.tiny_pipelines import build, diffusers

import epd
from epd.pipelines.configs import FAMILIES, class_name, live_config, parameters
from epd.pipelines.scheduler import RULES, EPDScheduler

FILES: dict[str, dict[str, Any]] = {  # as published: without the keys that are at their defaults
    "DDIMScheduler": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1},
    "PNDMScheduler": {"beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1},
    "DPMSolverMultistepScheduler": {"beta_schedule": "scaled_linear", "use_karras_sigmas": True},
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    "CogVideoXDDIMScheduler": {"prediction_type": "v_prediction", "snr_shift_scale": 1.0},
    "FlowMatchEulerDiscreteScheduler": {"num_train_timesteps": 1000},
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 2.0},
    "EDMEulerScheduler": {"sigma_data": 1.0, "rho": 5.0},
}


def loaded(folder: Path) -> EPDScheduler:
    scheduler = EPDScheduler.from_pretrained(folder)
    assert isinstance(scheduler, EPDScheduler)
    return scheduler


def written(folder: Path, name: str, config: dict[str, Any]) -> Path:
    text = json.dumps({"_class_name": name, "_diffusers_version": "0.38.0", **config}, sort_keys=True)
    (folder / "scheduler_config.json").write_text(text)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_5_3_from_config_and_from_pretrained_of_one_file(name: str, tmp_path: Path) -> None:
    written(tmp_path, name, FILES[name])
    stock = getattr(diffusers, name).from_pretrained(tmp_path)
    stock.set_timesteps(6)
    from_file = EPDScheduler.from_config(json.loads((tmp_path / "scheduler_config.json").read_text()))
    from_stock = EPDScheduler.from_config(stock.config)
    for own in (from_file, loaded(tmp_path), from_stock):
        own.set_timesteps(6)
        assert own.config["stock_class"] == name
        if "sigmas" in vars(stock):
            torch.testing.assert_close(own.sigmas, stock.sigmas.unique_consecutive(), rtol=1e-6, atol=1e-6)
        else:
            assert own.timesteps.tolist() == pytest.approx(stock.timesteps.unique_consecutive().tolist(), abs=1e-9)
            torch.testing.assert_close(own.alphas_cumprod, stock.alphas_cumprod)
        assert {k: v for k, v in own.config.items() if k[0] != "_"} == {
            k: v for k, v in from_stock.config.items() if k[0] != "_"
        }


def test_5_3_default_betas_are_the_classes_own(tmp_path: Path) -> None:
    """Heun's defaults are not DDIM's: 14.6 at the noisiest, not 157."""
    own = loaded(written(tmp_path, "HeunDiscreteScheduler", {"beta_schedule": "scaled_linear"}))
    assert own.frame.sigma_max == pytest.approx(14.6146, rel=1e-4)
    ddim = EPDScheduler.from_config({"_class_name": "DDIMScheduler"})
    assert ddim.frame.sigma_max == pytest.approx(157.407, rel=1e-4)


def test_5_2_only_the_scheduler_in_force_is_obeyed() -> None:
    unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    flow = diffusers.FlowMatchEulerDiscreteScheduler.from_config(unipc.config, shift=8.0)
    assert flow.config["flow_shift"] == 3.0
    back = diffusers.UniPCMultistepScheduler.from_config(flow.config, flow_shift=5.0)
    for stock, shift in ((flow, 8.0), (back, 5.0)):
        for config in (stock.config, live_config(stock)):
            assert class_name(config) == type(stock).__name__
            own = EPDScheduler.from_config(config)
            own.set_timesteps(5)
            stock.set_timesteps(5)
            torch.testing.assert_close(own.sigmas, stock.sigmas, rtol=1e-6, atol=1e-6)
            assert own.frame.sigma_min == pytest.approx(shift / (1000 + shift - 1))


def test_5_2_cogvideox_alphas_are_the_stock_ones() -> None:
    stock = diffusers.CogVideoXDDIMScheduler(
        snr_shift_scale=3.0, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    own = EPDScheduler.from_config(stock.config)
    assert torch.equal(own.alphas_cumprod, stock.alphas_cumprod)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    plain = EPDScheduler.from_config({**betas, "snr_shift_scale": 3.0})
    assert torch.equal(plain.alphas_cumprod, diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0).alphas_cumprod)
    unshifted = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=1.0).alphas_cumprod
    assert float((unshifted - stock.alphas_cumprod).max()) > 0.25


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_strat": 0.1}, "beta_strat = 0.1 means nothing to EulerDiscreteScheduler"),
        ({"prediction_type": "flow_prediction", "flow_shift": 3.0}, "flow_shift = 3.0 means nothing to FlowMatchEuler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas = True of Flow"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas with prediction_type = 'epsilon'"),
        ({"_class_name": "MyScheduler"}, "MyScheduler are not supported: it is unknown"),
        ({"_class_name": "LCMScheduler"}, "distilled to jump"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'"),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, "'flow_prediction'"),
    ],
)
def test_5_2_what_cannot_be_obeyed_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EPDScheduler.from_config(config)


def test_5_2_overrides_have_to_mean_something() -> None:
    config = diffusers.DDIMScheduler().config
    assert EPDScheduler.from_config(config, timestep_spacing="trailing").config["timestep_spacing"] == "trailing"
    with pytest.raises(ValueError, match="use_karras_sigmas = True means nothing to DDIMScheduler"):
        EPDScheduler.from_config(config, use_karras_sigmas=True)


class Derived(diffusers.DDIMScheduler):
    """Somebody's own class."""


def test_5_2_a_derived_class_is_its_stock_class() -> None:
    config = live_config(Derived(timestep_spacing="linspace"))
    assert config["_class_name"] == "DDIMScheduler"
    own = EPDScheduler.from_config(config)
    own.set_timesteps(4)
    assert own.timesteps.tolist() == pytest.approx([999, 666, 333, 0], abs=1e-6)


def test_5_2_alphas_that_were_changed_by_hand_are_refused() -> None:
    pipe = build("sd")
    table = epd.Table.from_dict({**tables.epd_table().to_dict(), "sigmas": [14.0, 6.0, 2.0, 0.6, 0.05]})
    stock = pipe.scheduler
    assert epd.disable(epd.enable(pipe, table)).scheduler is stock
    stock.alphas_cumprod = stock.alphas_cumprod**1.1
    with pytest.raises(ValueError, match=f"alphas_cumprod of this {type(stock).__name__} are not those"):
        epd.enable(pipe, table)


KINDS = {**{rule: {"rule": rule} for rule in RULES if rule != "table"}, "table": {"rule": "table"}}


def made(kind: str) -> EPDScheduler:
    table = epd.Table.from_dict({**tables.epd_table().to_dict(), "sigmas": [14.0, 6.0, 2.0, 0.6, 0.05]})
    more = {"table": table.to_dict(), "unit_variance": False} if kind == "table" else {}
    return EPDScheduler.from_config(diffusers.DDIMScheduler(beta_schedule="scaled_linear").config, rule=kind, **more)


def in_the_middle(scheduler: EPDScheduler) -> EPDScheduler:
    """After two network calls."""
    x = normal(2, 3, 4, 4)
    scheduler.set_timesteps(calls(scheduler))
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
    return scheduler


@pytest.mark.parametrize("kind", KINDS)
def test_5_11_a_loaded_or_copied_scheduler_is_the_fresh_one(kind: str, tmp_path: Path) -> None:
    fresh = made(kind)
    before = dict(fresh.config)
    fresh.save_pretrained(tmp_path)
    others = [
        loaded(tmp_path),
        EPDScheduler.from_config(fresh.config),
        copy.deepcopy(fresh),
        pickle.loads(pickle.dumps(fresh)),
        pickle.loads(pickle.dumps(in_the_middle(made(kind)))),
        copy.deepcopy(in_the_middle(made(kind))),
        EPDScheduler.from_config(json.loads((tmp_path / "scheduler_config.json").read_text())),
    ]
    x, t, number = normal(2, 3, 4, 4), 3, calls(fresh)
    fresh.set_timesteps(number)
    for other in others:
        assert {k: v for k, v in other.config.items() if k != "_diffusers_version"} == before
        assert other.frame.sigma_max == fresh.frame.sigma_max
        other.set_timesteps(number)
        other.set_timesteps(number)
        assert other.timesteps.tolist() == fresh.timesteps.tolist()
        other.set_begin_index(t)
        fresh.set_begin_index(t)
        assert other.begin_index == t
        results = [s.step(x, s.timesteps[t], x, return_dict=False)[0] for s in (fresh, other)]
        assert torch.equal(*results)
        fresh.set_timesteps(number)


@pytest.mark.parametrize("fresh", [EPDScheduler(), EPDScheduler(rule="heun", timestep_spacing="leading")])
def test_5_11_other_classes_get_all_values_from_a_fresh_and_from_a_loaded_one(
    fresh: EPDScheduler, tmp_path: Path
) -> None:
    """Euler's default spacing is linspace, ours trailing: what ran here runs there."""
    fresh.save_pretrained(tmp_path)
    for own in (fresh, loaded(tmp_path)):
        stock = diffusers.EulerDiscreteScheduler.from_config(own.config)
        stock.set_timesteps(5)
        own.set_timesteps(5)
        torch.testing.assert_close(own._required().levels.float(), stock.sigmas, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in FAMILIES if FAMILIES[n] == "vp"])
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of numpy, in some stock schedulers
def test_5_11_public_arrays_are_the_stock_ones(name: str) -> None:
    stock = getattr(diffusers, name)(trained_betas=torch.linspace(1e-4, 0.03, 100).tolist(), num_train_timesteps=100)
    own = EPDScheduler.from_config(stock.config)
    arrays = [a for a in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod") if a in vars(stock)]
    assert arrays[-2 if arrays[-1] == "final_alpha_cumprod" else -1] == "alphas_cumprod"
    for array in arrays:
        torch.testing.assert_close(vars(stock)[array], getattr(own, array))
    assert len(own) == len(stock) == 100


def test_5_11_flows_have_no_betas() -> None:
    own = EPDScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    with pytest.raises(AttributeError, match="betas"):
        own.betas  # noqa: B018


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
def test_5_11_the_network_first_sees_what_it_sees_in_stock(name: str, spacing: str) -> None:
    kind = getattr(diffusers, name)
    fast = {"num_train_timesteps": 100} if FAMILIES[name] == "vp" else {}
    stock = kind(**fast, **({"timestep_spacing": spacing} if "timestep_spacing" in parameters(name) else {}))
    own = EPDScheduler.from_config(stock.config)
    noise, seen = torch.ones(1, 1, 2, 2), []
    for scheduler in (stock, own):
        scheduler.set_timesteps(5)
        scale = 1.0 if FAMILIES[name] == "flow" else scheduler.init_noise_sigma
        latents = noise * scale
        t = scheduler.timesteps[0]
        seen.append(latents if FAMILIES[name] == "flow" else scheduler.scale_model_input(latents, t))
    torch.testing.assert_close(seen[1], seen[0].float(), rtol=1e-4, atol=0)
    if FAMILIES[name] == "flow":
        assert own.init_noise_sigma == 1
