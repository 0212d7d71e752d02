"""Every scheduler class of diffusers, with every key of its configuration: the stock noise levels, or a refusal."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch
from diffusers import schedulers
from diffusers.configuration_utils import ConfigMixin
from helpers.tiny_pipelines import diffusers
from torch import Tensor

from epd.pipelines.configs import FAMILIES, HARMLESS, OBEYED, parameters
from epd.pipelines.scheduler import EPDScheduler


def stock_classes() -> list[str]:
    """All that this diffusers has, deprecated ones and those that it does not export included."""
    names = set()
    for module in pkgutil.walk_packages(schedulers.__path__, schedulers.__name__ + "."):
        try:
            inside = vars(importlib.import_module(module.name))
        except ModuleNotFoundError:  # torchsde
            continue
        kinds = (k for k in inside.values() if inspect.isclass(k) and k.__module__ == module.name)
        names |= {k.__name__ for k in kinds if issubclass(k, ConfigMixin) and not k.__name__.endswith("Mixin")}
    return sorted(names)


OFF = {  # a value that is nobody's default
    "num_train_timesteps": 500,
    "beta_start": 0.0005,
    "beta_end": 0.015,
    "beta_schedule": "squaredcos_cap_v2",
    "trained_betas": torch.linspace(1e-4, 0.03, 200).tolist(),
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "timestep_type": "continuous",
    "interpolation_type": "log_linear",
    "steps_offset": 1,
    "final_sigmas_type": "sigma_min",
    "lambda_min_clipped": -3.0,
    "sigma_min": 0.1,
    "sigma_max": 50.0,
    "sigma_data": 0.7,
    "sigma_schedule": "exponential",
    "rho": 5.0,
    "snr_shift_scale": 2.0,
    "shift": 3.0,
    "flow_shift": 3.0,
    "shift_terminal": 0.1,
    "time_shift_type": "linear",
    "variance_type": "learned_range",
    "solver_order": 1,
    "algorithm_type": "dpmsolver",
    "solver_type": "heun",
}
TWICE = {  # a key that does nothing without another
    "flow_shift": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "use_flow_sigmas": {"prediction_type": "flow_prediction"},
    "shift_terminal": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "time_shift_type": {"use_dynamic_shifting": True},
    "rescale_betas_zero_snr": {"prediction_type": "v_prediction"},
}


def cases() -> list[tuple[str, str]]:
    out = []
    for name in stock_classes():
        kind = getattr(diffusers, name, None)
        keys = [] if kind is None else [k for k in inspect.signature(kind.__init__).parameters if k != "self"]
        out += [(name, key) for key in ("", *keys) if name in FAMILIES or not key]
    return out


def changes_of(kind: Any, key: str) -> dict[str, Any]:  # noqa: ANN401
    parameters = inspect.signature(kind.__init__).parameters
    default = parameters[key].default if key else None
    if key in OFF:
        value: Any = OFF[key]
    elif isinstance(default, bool):
        value = not default
    elif isinstance(default, int | float):
        value = default + 1
    else:
        return {}  # solver_p, tau_func, disable_corrector: parts of a solver
    value = "leading" if key == "timestep_spacing" and default == "trailing" else value
    few = {"num_train_timesteps": 200}  # some stock schedulers take long to set up 1000
    values = {**few, key: value, **{k: v for k, v in TWICE.get(key, {}).items() if k in parameters}}
    if key == "sigma_min" and "use_karras_sigmas" in parameters:
        values["use_karras_sigmas"] = True
    return values


def stock_grid(stock: Any) -> Tensor:  # noqa: ANN401
    """(N+1,) the levels that a stock scheduler, after `set_timesteps`, goes through."""
    if "sigmas" in vars(stock):
        return stock.sigmas.double().unique_consecutive()
    times = stock._timesteps.tolist()[::-1] if isinstance(stock, diffusers.PNDMScheduler) else stock.timesteps.tolist()
    alphas = [float(stock.alphas_cumprod[int(t)]) for t in times]
    alphas.append(float(vars(stock).get("final_alpha_cumprod", 1.0)))
    return torch.tensor([((1 - a) / max(a, 1e-30)) ** 0.5 for a in alphas], dtype=torch.float64)


def agrees(own: Tensor, stock: Tensor) -> None:
    finite = stock < 4000  # what stands for the infinite level is tested below
    torch.testing.assert_close(own[finite], stock[finite], rtol=1e-6, atol=1e-6)


def compared(stock: Any, n: int = 7) -> None:  # noqa: ANN401
    own = EPDScheduler.from_config(stock.config)
    mu = {"mu": 0.8} if stock.config.get("use_dynamic_shifting") else {}
    stock.set_timesteps(n, **mu)
    own.set_timesteps(n, **mu)
    levels = stock_grid(stock)
    levels = levels[: -1 if levels[-2] <= levels[-1] * (1 + 1e-6) else None]  # an empty step
    agrees(own._required().levels, levels)
    if own.frame.alphas_cumprod is not None:
        assert torch.equal(own.alphas_cumprod, stock.alphas_cumprod)
        agrees(own.frame.alphas_cumprod, stock.alphas_cumprod.double())


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of numpy, in some stock schedulers
@pytest.mark.parametrize(("name", "key"), cases())
def test_5_2_every_key_of_every_class_is_obeyed_or_refused_by_name(name: str, key: str) -> None:
    if name not in FAMILIES:
        for config in ({"_class_name": name}, {"num_train_timesteps": 1000, "_class_name": name}):
            with pytest.raises(ValueError, match=name):
                EPDScheduler.from_config(config)
        return
    kind = getattr(diffusers, name)
    changes = changes_of(kind, key)
    try:
        stock = kind(**changes)
        mu = {"mu": 0.8} if stock.config.get("use_dynamic_shifting") else {}
        stock.set_timesteps(7, **mu)
    except (AssertionError, NotImplementedError, ValueError):  # no such stock scheduler
        with pytest.raises(ValueError, match="."):
            EPDScheduler.from_config({"_class_name": name, **changes}).set_timesteps(7, mu=0.8)
        return
    try:
        own = EPDScheduler.from_config(stock.config)
    except ValueError as error:
        assert key in str(error), error  # noqa: PT017 - either this or the comparison below
        assert key not in OBEYED | HARMLESS or key in ("prediction_type", "use_flow_sigmas", "use_dynamic_shifting")
        return
    assert not key or key in OBEYED | HARMLESS
    assert list(parameters(own.config["stock_class"])) == list(parameters(name))  # such twins do not differ
    compared(stock)
