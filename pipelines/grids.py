"""The sigmas that a stock scheduler of diffusers would use, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoisers.timesteps import Timesteps
from ..solvers.schedules import given, polynomial
from .frames import Frame

Config = Mapping[str, Any]


def is_placeholder(sigmas: Sequence[float]) -> bool:
    """1, 1 - 1/n, ..., 1/n: what flow pipelines pass of their own accord. It says n, and is meant to be shifted."""
    n = len(sigmas)
    return all(abs(float(s) - (1 - i / n)) < 1e-6 for i, s in enumerate(sigmas))


def noise_level(frame: Frame, timestep: Tensor) -> Tensor:
    """sigma of the scheduler's timesteps, float64 on the CPU: the inverse of the frame's own map."""
    t = timestep.detach().to("cpu", torch.float64)
    if frame.path == "flow":
        return t / frame.num_timesteps
    return (4 * t).exp() if frame.alphas_cumprod is None else Timesteps(frame.alphas_cumprod).sigma(t)


def stock_levels(
    config: Config,
    frame: Frame,
    n: int | None,
    timesteps: list[float] | None = None,
    sigmas: list[float] | None = None,
    mu: float | None = None,
) -> Tensor:
    """(N+1,) that a pipeline asks for: its own sigmas or timesteps exactly, or the stock scheduler's for n steps."""
    placeholder = sigmas is not None and frame.path == "flow" and is_placeholder(sigmas)
    if sigmas is not None and not placeholder:
        return explicit(sigmas)
    if timesteps is not None:
        return explicit(noise_level(frame, torch.tensor(timesteps, dtype=torch.float64)).tolist())
    count = len(sigmas) if sigmas is not None else int(n or 0)
    if count < 1:
        raise ValueError(f"num_inference_steps = {n} must be at least 1")
    if frame.path == "flow":
        return flow_levels(config, count, mu, placeholder)
    if frame.alphas_cumprod is None:
        return edm_levels(frame.sigma_min, frame.sigma_max, count)
    return diffusion_levels(config, Timesteps(frame.alphas_cumprod), count)


def explicit(sigmas: Sequence[float]) -> Tensor:
    """A caller's own sigmas exactly, (N+1,): a trailing 0 is added where it is missing.

    Raises:
        ValueError: unless they decrease.
    """
    row = [float(s) for s in sigmas]
    return given(row if row and row[-1] == 0 else [*row, 0.0])


def diffusion_levels(config: Config, times: Timesteps, n: int) -> Tensor:
    """(n+1,) of the variance-preserving family: its timestep spacing, respaced where it says so, and its last sigma."""
    count = int(config["num_train_timesteps"])
    if not 1 <= n <= count:
        raise ValueError(f"num_inference_steps = {n} must lie in 1..{count}, the trained timesteps")
    spacing = config["timestep_spacing"]
    ramp = torch.arange(n, dtype=torch.float64)
    if spacing == "trailing":
        t = (count - ramp * (count / n)).round() - 1
    elif spacing == "leading":
        t = (n - 1 - ramp) * (count // n) + config["steps_offset"]
    elif spacing == "linspace":
        t = torch.linspace(count - 1, 0, n, dtype=torch.float64)
    else:
        raise ValueError(f"timestep_spacing = {spacing!r} is unknown: give trailing, leading or linspace")
    sigmas = _respaced(config, times.sigma(t.clamp(0, len(times) - 1)))
    # Configurations carry set_alpha_to_one along through schedulers that do not know it: only DDIM's kind obeys it.
    to_zero = config["final_sigmas_type"] == "zero" and (config["set_alpha_to_one"] or not config["unit_variance"])
    last = 0.0 if to_zero else times.sigma_min
    if len(sigmas) > 1 and float(sigmas[-1]) <= last:  # linspace ends on the first timestep itself
        sigmas = sigmas[:-1]
    return given([*sigmas.tolist(), last])


def edm_levels(sigma_min: float, sigma_max: float, n: int) -> Tensor:
    """(n+1,) of the EDM family: rho = 7 on n points, and 0. Reference: arXiv 2206.00364, Eq. 5."""
    points = polynomial(n - 1, sigma_min, sigma_max).tolist() if n > 1 else [sigma_max]
    return given([*points, 0.0])


def flow_levels(config: Config, n: int, mu: float | None, placeholder: bool) -> Tensor:
    """(n+1,) of the rectified-flow family: its ramp, its static shift or the dynamic one by `mu`, and 0.

    Raises:
        ValueError: for a dynamic shift without mu.
    """
    count = int(config["num_train_timesteps"])
    dynamic = bool(config["use_dynamic_shifting"])
    static = float(config["flow_shift"] if config["use_flow_sigmas"] else config["shift"])
    low = 1 / count
    if placeholder:
        ramp = 1 - torch.arange(n, dtype=torch.float64) / n
    elif config["use_flow_sigmas"]:
        ramp = torch.linspace(1, low, n + 1, dtype=torch.float64)[:-1]
    else:
        ramp = torch.linspace(1, low if dynamic else _shifted(low, static), n, dtype=torch.float64)
    if dynamic and mu is None:
        raise ValueError("mu is None, but use_dynamic_shifting is on: pass mu=, as pipelines do")
    if not dynamic:
        sigmas = _shifted(ramp, static)
    else:
        kind = config["time_shift_type"]
        factor = math.exp(mu or 0.0) if kind == "exponential" else float(mu or 0.0)
        sigmas = factor / (factor + 1 / ramp - 1)
    if config["shift_terminal"]:
        sigmas = 1 - (1 - sigmas) * (1 - config["shift_terminal"]) / (1 - sigmas[-1])
    return given([*_respaced(config, sigmas).tolist(), 0.0])


def _shifted(sigma: Any, shift: float) -> Any:  # noqa: ANN401 - a number or a tensor
    return shift * sigma / (1 + (shift - 1) * sigma)


def _respaced(config: Config, sigmas: Tensor) -> Tensor:
    """Karras' or exponential spacing between the same ends, where the configuration asks for it."""
    first = config["sigma_max"] if config["sigma_max"] is not None else float(sigmas[0])
    last = config["sigma_min"] if config["sigma_min"] is not None else float(sigmas[-1])
    ramp = torch.linspace(0, 1, len(sigmas), dtype=torch.float64)
    if config["use_karras_sigmas"]:
        top, bottom = first ** (1 / 7), last ** (1 / 7)
        return (top + ramp * (bottom - top)) ** 7
    if config["use_exponential_sigmas"]:
        return (math.log(first) + ramp * math.log(last / first)).exp()
    if config["use_beta_sigmas"]:
        raise ValueError("use_beta_sigmas is not supported: pass sigmas= with the values that you want")
    return sigmas
