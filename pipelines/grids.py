"""The sigmas that a stock scheduler of diffusers would use: that scheduler is built and asked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoisers.timesteps import Timesteps
from ..solvers.schedules import checked_sigmas
from .configs import Stock, stock_of
from .frames import Frame

Config = Mapping[str, Any]
WITHOUT_SIGMAS = frozenset({
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler",
    "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
})  # fmt: skip


def is_placeholder(sigmas: Sequence[float]) -> bool:
    """1, 1 - 1/n, ..., 1/n: what flow pipelines pass of their own accord. It says n, and is meant to be shifted."""
    n = len(sigmas)
    return all(abs(float(s) - (1 - i / n)) < 1e-6 for i, s in enumerate(sigmas))


def is_even(sigmas: Sequence[float], count: float) -> bool:
    """Whether sigmas fall from 1 in equal steps, up to a timestep of `count`: pipelines round them."""
    step = (float(sigmas[-1]) - 1) / max(len(sigmas) - 1, 1)
    return all(abs(float(s) - (1 + i * step)) <= 1 / count for i, s in enumerate(sigmas)) and sigmas[0] == 1


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
    """(N+1,) that a pipeline asks for: its own sigmas or timesteps exactly, or the stock scheduler's for n steps.

    Flow pipelines pass ramps of their own accord, which the stock scheduler is meant to shift: `is_placeholder`, or
    sigmas and their timesteps together.
    """
    ramp = sigmas is not None and frame.path == "flow" and (timesteps is not None or is_placeholder(sigmas))
    if sigmas is not None and not ramp:
        return explicit(sigmas)
    if timesteps is not None and sigmas is None:
        return explicit(noise_level(frame, torch.tensor(timesteps, dtype=torch.float64)).tolist())
    count = len(sigmas) if sigmas is not None else int(n or 0)
    if count < 1:
        raise ValueError(f"num_inference_steps = {n} must be at least 1")
    stock = stock_of(config)
    if frame.alphas_cumprod is not None:
        return diffusion_levels(stock, Timesteps(frame.alphas_cumprod), count, mu)
    levels = _with_timesteps(stock, count, sigmas if ramp else None, mu).sigmas.double().unique_consecutive()
    return _ending(levels[:-1], float(levels[-1]))


def require_agreement(frame: Frame, timesteps: Sequence[float], sigmas: Sequence[float]) -> None:
    """Some pipelines pass both, the timesteps rounded.

    Raises:
        ValueError: when they say different things.
    """
    levels = torch.tensor(sigmas[: len(timesteps)], dtype=torch.float64)
    own_times, times = frame.precondition(levels)[3], torch.tensor(timesteps, dtype=torch.float64)
    if len(own_times) != len(times) or bool(((own_times - times).abs() > 1e-3 * times.abs().max()).any()):
        raise ValueError(
            f"timesteps = {[round(t, 3) for t in timesteps]} are not those of sigmas = {list(sigmas)}, which are "
            f"{[round(t, 3) for t in own_times.tolist()]}: give one of them"
        )


def shift_of(config: Config, mu: float | None) -> float:
    """s of a flow's shift sigma = s t / (1 + (s - 1) t), static or by `mu`.

    Raises:
        ValueError: for a dynamic one without mu, or a configuration that shifts otherwise.
    """
    own = stock_of(config).config
    for key in ("shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        if own.get(key):
            raise ValueError(f"timesteps and sigmas are both given, and {key} moves them apart: give one of them")
    if not own.get("use_dynamic_shifting"):
        return float(own["flow_shift"] if own.get("use_flow_sigmas") else own["shift"])
    factor = _required_mu(mu)
    return math.exp(factor) if own["time_shift_type"] == "exponential" else factor


def explicit(sigmas: Sequence[float]) -> Tensor:
    """A caller's own sigmas exactly, (N+1,): a trailing 0 is added where it is missing.

    Raises:
        ValueError: unless they decrease.
    """
    row = [float(s) for s in sigmas]
    return checked_sigmas(row if row and row[-1] == 0 else [*row, 0.0])


def diffusion_levels(stock: Stock, times: Timesteps, n: int, mu: float | None) -> Tensor:
    """(N+1,) of the variance-preserving family, N = n except where the stock grid ends on its last level twice."""
    count, spacing = int(stock.config["num_train_timesteps"]), stock.config.get("timestep_spacing", "linspace")
    if not 1 <= n <= count:
        raise ValueError(f"num_inference_steps = {n} must lie in 1..{count}, the trained timesteps")
    if spacing not in ("trailing", "leading", "linspace"):
        raise ValueError(f"timestep_spacing = {spacing!r} is unknown: give trailing, leading or linspace")
    live = _with_timesteps(stock, n, None, mu)
    if stock.name in WITHOUT_SIGMAS:
        body, last = times.sigma(live.timesteps), _last(live)
    else:
        levels = live.sigmas.double().unique_consecutive()
        body, last = _exact(levels[:-1], times), float(levels[-1])
        if stock.config.get("rescale_betas_zero_snr") and float(live.timesteps[0]) == count - 1:
            body[0] = times.sigma_max  # which is above the stock one where that is below its neighbour
    if n == 1 and spacing == "linspace":
        body = torch.tensor([times.sigma_max], dtype=torch.float64)  # some make the cleanest of it
    return _ending(body, last)


def _ending(body: Tensor, last: float) -> Tensor:
    """Some stock schedulers end in an empty step, up to rounding."""
    return checked_sigmas([*(s for s in body.tolist() if s > last * (1 + 1e-6)), last])


def _exact(levels: Tensor, times: Timesteps) -> Tensor:
    """float32 sigmas of whole timesteps, exactly: networks that are told 980.99998 for 981 may cut it to 980."""
    whole = times.sigma(times.timestep(levels).round())
    return torch.where((whole - levels).abs() <= 2e-6 * levels, whole, levels)


def _last(live: Any) -> float:  # noqa: ANN401 - a scheduler of diffusers
    """Where a scheduler without sigmas ends: DDIM's kind says so, DDPM's at 0."""
    alpha = float(vars(live).get("final_alpha_cumprod", 1.0))
    return math.sqrt((1 - alpha) / alpha)


def _with_timesteps(stock: Stock, n: int, sigmas: list[float] | None, mu: float | None) -> Any:  # noqa: ANN401
    """The stock scheduler after `set_timesteps`.

    Raises:
        ValueError: when it cannot, or for a dynamic shift without mu.
    """
    live = stock.build()
    taken = inspect.signature(live.set_timesteps).parameters
    values: dict[str, Any] = {"sigmas": sigmas} if sigmas is not None and "sigmas" in taken else {}
    values = values or {"num_inference_steps": n}
    if stock.config.get("use_dynamic_shifting"):
        values["mu"] = _required_mu(mu)
    try:
        live.set_timesteps(**values)
    except (AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{stock.name} cannot make {n} steps of its own configuration: {error}") from error
    return live


def _required_mu(mu: float | None) -> float:
    if mu is None:
        raise ValueError("mu is None, but use_dynamic_shifting is on: pass mu=, as pipelines do")
    return float(mu)
