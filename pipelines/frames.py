"""What a pipeline's state is: its path and network parameterisation, its native time, its packing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers.preconditioning import Preconditioning, discrete, edm, flow
from ..denoisers.protocol import Path
from ..denoisers.timesteps import Timesteps

TIMES: Mapping[str, Callable[[Tensor, float], Tensor]] = {  # scheduler's t -> what networks are told
    "t": lambda t, count: t,
    "t / T": lambda t, count: t / count,
    "1 - t / T": lambda t, count: 1 - t / count,  # Lumina: 0 is noise
    "T - t": lambda t, count: count - t,
}


@dataclass(frozen=True)
class Frame:
    """The path of a scheduler's family and how the network's output becomes a denoised state.

    Args:
        path: `ve` (the pipeline's own state is x / sqrt(1 + sigma^2)) or `flow`.
        prediction: `epsilon`, `v_prediction`, `sample`, `flow` or `edm`.
        precondition: sigma -> (c_skip, c_out, c_in, the scheduler's timestep).
        sigma_min, sigma_max: trained range.
        num_timesteps: T.
        alphas_cumprod: (T,) where the path is variance preserving in the pipeline.
    """

    path: Path
    prediction: str
    precondition: Preconditioning
    sigma_min: float
    sigma_max: float
    num_timesteps: float
    alphas_cumprod: Tensor | None = None


def frame_of(scheduler: Any) -> Frame:  # noqa: ANN401 - any scheduler of diffusers
    """Read off the configuration of the pipeline's scheduler.

    Raises:
        ValueError: for a family that is none of variance preserving, EDM or rectified flow.
    """
    config = dict(scheduler.config)
    prediction = str(config.get("prediction_type", ""))
    count = float(config.get("num_train_timesteps", 1000))
    if config.get("use_flow_sigmas") or prediction == "flow_prediction" or ("shift" in config and not prediction):
        return _flow(config, count)
    if "sigma_data" in config:
        if prediction != "epsilon":
            raise ValueError(f"an EDM scheduler with prediction_type = {prediction!r} is unknown: give 'epsilon'")
        low, high = float(config["sigma_min"]), float(config["sigma_max"])
        return Frame("ve", "edm", edm(float(config["sigma_data"])), low, high, count)
    if "beta_start" not in config:
        raise ValueError(
            f"{type(scheduler).__name__} is neither variance preserving (beta_start), EDM (sigma_data) nor rectified "
            "flow (use_flow_sigmas, shift): its noise levels cannot be told"
        )
    acp = scheduler.alphas_cumprod.detach().to("cpu", torch.float64)
    if acp[-1] <= 0:  # zero terminal SNR: infinitely noisy
        acp = acp[:-1]
    times = Timesteps(acp)
    kind = discrete(prediction, times)  # type: ignore[arg-type] (it checks the name itself)
    return Frame("ve", prediction, kind, times.sigma_min, times.sigma_max, count, acp)


def _flow(config: Mapping[str, Any], count: float) -> Frame:
    """With a static shift the trained grid is shift s / (1 + (shift - 1) s), s = 1/T..1; a dynamic one is a choice."""
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas = True: a scheduler whose noise levels rise is not supported")
    shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
    low = 1 / count if config.get("use_dynamic_shifting") else shift / (count + shift - 1)
    return Frame("flow", "flow", flow(count), low, 1.0, count)


def native_time(seen: tuple[float, float], given: tuple[float, float], count: float, dtype: torch.dtype) -> str:
    """Which of TIMES a pipeline applies, told from two probes.

    Raises:
        ValueError: when it is none of them.
    """
    tolerance = 4 * torch.finfo(dtype).eps if dtype.is_floating_point else 1e-9
    for name, convert in TIMES.items():
        wanted = [float(convert(torch.tensor(t, dtype=torch.float64), count)) for t in given]
        if all(abs(w - s) <= tolerance * max(1.0, abs(w)) for w, s in zip(wanted, seen, strict=True)):
            return name
    raise ValueError(f"timesteps {given} reach the network as {seen}, none of {', '.join(TIMES)}: not supported")


@dataclass(frozen=True)
class Packing:
    """2 x 2 patches as tokens, (B, C, h, w) <-> (B, h w / 4, 4 C), as FLUX and its relatives want their state."""

    height: int
    width: int

    def pack(self, x: Tensor) -> Tensor:
        rows = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))  # (B, C, h/2, 2, w/2, 2)
        return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpack(self, tokens: Tensor) -> Tensor:
        grid = tokens.unflatten(1, (self.height // 2, self.width // 2)).unflatten(3, (-1, 2, 2))
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
