"""What a pipeline's state is: its path and network parameterisation, its native time, its packing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoisers.preconditioning import Preconditioning, continuous_v, discrete, edm, flow
from ..denoisers.protocol import Path
from ..denoisers.timesteps import Timesteps
from .configs import completed, live_config, stock_of

ALMOST_T = "t - 1"
TIMES: Mapping[str, Callable[[Tensor, float], Tensor]] = {  # scheduler's t -> what networks are told
    "t": lambda t, count: t,
    "t / T": lambda t, count: t / count,
    "1 - t / T": lambda t, count: 1 - t / count,  # Lumina: 0 is noise
    "T - t": lambda t, count: count - t,
    ALMOST_T: lambda t, count: t - 1,  # GLM-Image
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
    """The path, parameterisation and trained noise levels of the networks that a scheduler serves.

    Raises:
        ValueError: for a family that is none of variance preserving, EDM or rectified flow, and for what of its
            configuration is not supported; it names the key.
    """
    stock = stock_of(completed(live_config(scheduler)))
    count = float(stock.config["num_train_timesteps"])
    prediction = str(stock.config.get("prediction_type", ""))
    if stock.family == "flow":
        return Frame("flow", "flow", flow(count), _lowest(stock.config, count), 1.0, count)
    if stock.family == "edm":
        if prediction != "epsilon":
            raise ValueError(f"an EDM scheduler with prediction_type = {prediction!r} is unknown: give 'epsilon'")
        low, high = float(stock.config["sigma_min"]), float(stock.config["sigma_max"])
        return Frame("ve", "edm", edm(float(stock.config["sigma_data"])), low, high, count)
    acp = _trained(scheduler.alphas_cumprod, stock.config, prediction)
    times = Timesteps(acp)
    if stock.family == "continuous":
        low, high = (stock.config.get(key) or trained
                     for key, trained in (("sigma_min", times.sigma_min), ("sigma_max", times.sigma_max)))  # fmt: skip
        return Frame("ve", prediction, continuous_v(), float(low), float(high), count)
    kind = discrete(prediction, times)  # type: ignore[arg-type] (it checks the name itself)
    return Frame("ve", prediction, kind, times.sigma_min, times.sigma_max, count, acp)


def _trained(alphas_cumprod: Tensor, config: Mapping[str, Any], prediction: str) -> Tensor:
    """(T,) float64, with a finite end in place of zero terminal SNR.

    At the infinitely noisy timestep the state is noise alone, whatever the level that stands for it: with one of S the
    first Euler step is DDIM's up to 1 / S of the denoised state. Larger levels cost digits of a float32 state; 4096 is
    what the stock schedulers with sigmas put there, too.

    Raises:
        ValueError: for a network that predicts the noise, which says nothing where the state is noise alone.
    """
    acp = alphas_cumprod.detach().to("cpu", torch.float64).clone()
    if acp[-1] > 0 and not config.get("rescale_betas_zero_snr"):
        return acp
    if prediction == "epsilon":
        raise ValueError(
            "prediction_type = 'epsilon' with zero terminal SNR (rescale_betas_zero_snr): the noise in pure noise says "
            "nothing of the picture; set rescale_betas_zero_snr=False, or the prediction_type of the network"
        )
    acp[-1] = 2.0**-24 if 2.0**-24 < acp[-2] else acp[-2] / 4
    return acp


def _lowest(config: Mapping[str, Any], count: float) -> float:
    """With a static shift s the trained grid is s t / (1 + (s - 1) t), t = 1/T..1; a dynamic one is a choice."""
    if config.get("use_dynamic_shifting"):
        return 1 / count
    shift = float(config["flow_shift"] if config.get("use_flow_sigmas") else config["shift"])
    return shift / (count + shift - 1)


def require_untouched(scheduler: Any, frame: Frame) -> None:  # noqa: ANN401 - any scheduler of diffusers
    """Whether a live scheduler's noise levels are the ones that its configuration describes.

    Args:
        scheduler: the live one.
        frame: made from its configuration alone.

    Raises:
        ValueError: when somebody changed its alphas by hand.
    """
    live = frame_of(scheduler).alphas_cumprod
    if live is None or frame.alphas_cumprod is None:
        return
    if live.shape != frame.alphas_cumprod.shape or not torch.allclose(live, frame.alphas_cumprod, rtol=1e-5, atol=0):
        raise ValueError(
            f"the alphas_cumprod of this {type(scheduler).__name__} are not those of its configuration: put the betas "
            "that they come from into its trained_betas"
        )


def told_unshifted(frame: Frame, shift: float) -> Frame:
    """A flow whose networks are told t where the noise level is sigma = s t / (1 + (s - 1) t) (CogView4, GLM-Image)."""

    def coefficients(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        skip, out, scale, _ = frame.precondition(sigma)
        return skip, out, scale, frame.num_timesteps * sigma / (sigma + shift * (1 - sigma))

    return replace(frame, precondition=coefficients)


def native_time(seen: tuple[float, float], timesteps: tuple[float, float], count: float, dtype: torch.dtype) -> str:
    """Which of TIMES a pipeline applies, told from two probes.

    Raises:
        ValueError: when it is none of them.
    """
    tolerance = 4 * torch.finfo(dtype).eps if dtype.is_floating_point else 1e-9
    for name, convert in TIMES.items():
        expected = [float(convert(torch.tensor(t, dtype=torch.float64), count)) for t in timesteps]
        if all(abs(w - s) <= tolerance * max(1.0, abs(w)) for w, s in zip(expected, seen, strict=True)):
            return name
    raise ValueError(f"timesteps {timesteps} reach the network as {seen}, none of {', '.join(TIMES)}: not supported")


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
