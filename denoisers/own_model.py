"""Any function `(x, sigma) -> denoised` as a model: torch, or NumPy, JAX and ONNX without gradients."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .networks import noise_levels
from .protocol import Denoiser, Path, rows_per_condition

Denoise = Callable[[Any, Any], Any]  # (x (R, *S), sigma (R,)) -> denoised (R, *S), tensors or arrays


@dataclass(frozen=True, eq=False)
class OwnModel:
    """What `own_model` makes: a `Model` around one function."""

    denoise: Denoise
    shape: tuple[int, ...]
    sigma_min: float
    sigma_max: float
    path: Path
    name: str
    device: str
    preserving: bool  # whether the function wants alpha x, the variance-preserving state
    numpy: bool
    decoder: Callable[[Tensor], Tensor] | None
    bind: Callable[[Sequence[int]], Denoise] | None
    guidance: float = 1.0
    alphas_cumprod: Tensor | None = None
    seeds: tuple[int, ...] | None = None
    _bound: dict[int, Denoise] = field(default_factory=dict, init=False)  # by points a sample

    def for_seeds(self, seeds: Sequence[int]) -> Denoiser:
        """The model for the samples with these seeds: with the function that `bind` makes for them."""
        return self if self.bind is None else replace(self, seeds=tuple(seeds))

    def decode(self, x: Tensor) -> Tensor:
        """Pictures in [0, 1] of finished states; x/2 + 1/2 where none was given."""
        return (x / 2 + 0.5).clamp(0, 1) if self.decoder is None else self.decoder(x)

    def _function(self, rows: int) -> Denoise:
        """The function for a call of this many rows, whose conditions are repeated sample-major."""
        if self.bind is None or self.seeds is None:
            return self.denoise
        points = rows_per_condition(rows, len(self.seeds))
        if points not in self._bound:
            self._bound[points] = self.bind([seed for seed in self.seeds for _ in range(points)])
        return self._bound[points]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        levels = noise_levels(x, sigma).expand(len(x))
        state = x
        if self.preserving:
            alpha = (levels * levels + 1).rsqrt()
            state = x * alpha.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        function = self._function(len(x))
        if self.numpy:
            work = torch.float64 if x.dtype == torch.float64 else torch.float32  # NumPy has no bfloat16
            return self._from_arrays(function(*(part.detach().to("cpu", work).numpy() for part in (state, levels))), x)
        denoised = function(state, levels.to(x.dtype))
        if not isinstance(denoised, Tensor):
            raise ValueError(
                f"{self.name}: the function returned {type(denoised).__name__}, not a torch tensor: return one, or "
                "give numpy=True if it takes and returns arrays"
            )
        return denoised.to(x.dtype) if denoised.is_floating_point() else denoised

    def _from_arrays(self, denoised: object, x: Tensor) -> Tensor:
        import numpy as np

        array = np.array(denoised)  # a copy: arrays of other frameworks may be read-only, or change later
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{self.name}: the function returned {array.dtype}, not an array of floating point numbers"
            )
        return torch.from_numpy(array).to(device=x.device, dtype=x.dtype)


def own_model(
    denoise: Denoise,
    shape: Sequence[int],
    sigma_min: float,
    sigma_max: float,
    path: Literal["ve", "flow", "vp"] = "ve",
    decode: Callable[[Tensor], Tensor] | None = None,
    bind: Callable[[Sequence[int]], Denoise] | None = None,
    *,
    numpy: bool = False,
    name: str = "own model",
    device: str = "cpu",
) -> OwnModel:
    r"""A model from a function `denoise(x, sigma)` that returns E[x0 | x]; solvable, learnable, comparable.

    `ve`: x = x0 + sigma eps. `flow`: x = (1 - sigma) x0 + sigma eps, sigma_max = 1 or a little less. `vp`: the function
    gets its own state alpha x0 + std eps with alpha = 1 / sqrt(1 + sigma^2), and sigma = std / alpha; everything else
    sees the model as `ve`. A network that predicts noise, a score or v is better made a `NetworkDenoiser` with the
    functions of `denoisers/preconditioning.py`, in float64 coefficients.

    Args:
        denoise: x (R, *S) and sigma (R,), one noise level a row, both in the dtype of the state; returns (R, *S). Rows
            are samples and must not see each other. Reshape sigma to (R, 1, ...) before it meets x.
        shape: S, of one sample.
        sigma_min, sigma_max: the range that it was trained for, 0 < sigma_min < sigma_max.
        path: as above.
        decode: finished states (B, *S) -> pictures (B, C, H, W) in [0, 1]; x/2 + 1/2 by default.
        bind: seeds (R,) -> the function for rows with the conditions that these seeds stand for; a seed occurs several
            times in a call that evaluates several points of its sample.
        numpy: hand out and take NumPy arrays on the CPU, as JAX, ONNX Runtime and the like want them. Such a function
            has no gradients: it is trained by Gauss-Newton, on forward evaluations.
        name: what tables record as the model that they were learned for.
        device: where states are made.

    Raises:
        ValueError: for an unknown path, a shape that is empty or not of integers, or a range of noise levels that is
            none.
    """
    if path not in ("ve", "flow", "vp"):
        raise ValueError(f"path = {path!r} is unknown: give 've', 'flow' or 'vp'")
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError as error:
        raise ValueError(f"shape = {shape!r} must be the integer sizes of one sample, such as (1, 8, 8)") from error
    if not sizes or min(sizes) < 1:
        raise ValueError(f"shape = {sizes} must be the sizes of one sample, at least 1 each, without the batch")
    if not 0 < sigma_min < sigma_max < float("inf") or (path == "flow" and sigma_max > 1):
        top = "<= 1" if path == "flow" else "< infinity"
        raise ValueError(
            f"sigma_min = {sigma_min}, sigma_max = {sigma_max}: must be 0 < sigma_min < sigma_max {top}"
        )
    frame: Path = "flow" if path == "flow" else "ve"
    return OwnModel(
        denoise, sizes, float(sigma_min), float(sigma_max), frame, name, device, path == "vp", numpy, decode, bind
    )
