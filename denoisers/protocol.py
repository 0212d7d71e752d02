"""The contracts of this room: what a solver needs of a model, what a trainer needs beside that, and guidance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Path = Literal["ve", "flow"]


@runtime_checkable
class Denoiser(Protocol):
    r"""The one thing that a solver needs of a model: `denoised = denoiser(x, sigma)`, an estimate of E[x0 | x].

    On every path x = alpha x0 + sigma eps with alpha = 1 + c sigma (variance exploding: c = 0; rectified flow: c = -1)
    the probability-flow ODE is dx/dsigma = (x - denoised) / sigma.

    Args:
        x: state (B, *S), any floating dtype; the result has its shape and dtype.
        sigma: noise level, 0-d or (B,), float64; beside x, or on the CPU where x's device has no float64 (MPS).
    """

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


@runtime_checkable
class Guided(Protocol):
    """A denoiser whose guidance can be another at every evaluation, at the cost of the one that is bound."""

    def at_guidance(self, x: Tensor, sigma: Tensor, factor: Tensor) -> Tensor:
        """D_u + factor g (D_c - D_u), where the denoiser itself is D_u + g (D_c - D_u).

        Args:
            x, sigma: as a denoiser gets them.
            factor: 0-d or (B,), float64, where sigma is.

        Raises:
            ValueError: where no guidance is bound.
        """
        ...


class PassesGuidance(ABC):
    """What stands before a denoiser: one method serves evaluations with the bound guidance and with another."""

    @abstractmethod
    def _denoised(self, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
        """As of `denoised_at`."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._denoised(x, sigma, None)

    def at_guidance(self, x: Tensor, sigma: Tensor, factor: Tensor) -> Tensor:
        """See `Guided`."""
        return self._denoised(x, sigma, factor)


def denoised_at(denoiser: Denoiser, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
    """D (B, *S) with the bound guidance scale times `factor`; none: as it is bound.

    Raises:
        ValueError: for a factor where the denoiser has no guidance.
    """
    if factor is None:
        return denoiser(x, sigma)
    if not isinstance(denoiser, Guided):
        raise ValueError(
            f"the guidance of {type(denoiser).__name__} is to be scaled, and it has no at_guidance(x, sigma, factor): "
            "take a table whose guidance_scale and anchor_guidance are 1, or give it one"
        )
    return denoiser.at_guidance(x, sigma, factor)


def unguided(name: str) -> ValueError:
    """The error where the guidance of a model is to be scaled that is bound without one."""
    return ValueError(
        f"the guidance of {name} is to be scaled, and it is bound with guidance 1, which makes no unconditional "
        "evaluation: bind it with another guidance, or take a table whose guidance_scale and anchor_guidance are 1"
    )


class Model(Denoiser, Protocol):
    """A denoiser with what training, sampling and comparing need beside the evaluation: name, path, shape, range.

    A sample is its seed: seed -> noise (`unit_noise`) and seed -> condition (`for_seeds`), so that nothing depends on
    how samples are batched or on which process they land.
    """

    @property
    def name(self) -> str:
        """What tables record as the model that they were learned for."""
        ...

    @property
    def path(self) -> Path:
        """`ve` or `flow`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def sigma_min(self) -> float:
        """Smallest noise level that it was trained for, > 0."""
        ...

    @property
    def sigma_max(self) -> float:
        """Largest noise level that it was trained for; at most 1 on a flow path."""
        ...

    @property
    def guidance(self) -> float:
        """Guidance scale that is bound by `for_seeds`; 1 means none."""
        ...

    @property
    def alphas_cumprod(self) -> Tensor | None:
        """Signal shares (T,) on the training timesteps of a discrete-time network; None for any other model."""
        ...

    @property
    def device(self) -> str:
        """Where states are made and evaluated."""
        ...

    def for_seeds(self, seeds: Sequence[int]) -> Denoiser:
        """The denoiser for the samples with these seeds, bound to the condition that each seed stands for."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] of finished states."""
        ...


def coefficient_device(device: torch.device | str) -> torch.device:
    """Where float64 coefficients for tensors on this device live: beside them, or on the CPU where the device has no
    float64 (MPS).
    """
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def beside(coefficients: Tensor, x: Tensor) -> Tensor:
    """Coefficients in x's dtype, on x's device; rounded first, as the device may have no float64."""
    return coefficients.to(x.dtype).to(x.device)


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, 0-d or one per sample (B,), ready to multiply x (B, *S) without changing its dtype."""
    if coefficient.ndim == 0:
        return coefficient
    return beside(coefficient, x).reshape(-1, *[1] * (x.ndim - 1))


def capturing(x: Tensor) -> bool:
    """Whether what is computed beside x becomes part of a CUDA graph, and runs later."""
    return x.is_cuda and torch.backends.cuda.is_built() and torch.cuda.is_current_stream_capturing()


@runtime_checkable
class Described(Protocol):
    """What a model may tell beside `Model`: recorded with its tables, so that their use elsewhere can be warned of."""

    @property
    def prediction(self) -> str:
        """What the network predicts: `epsilon`, `v_prediction`, `sample`, `flow`; empty where it is none of these."""
        ...

    @property
    def resolution(self) -> tuple[int, ...]:
        """Height and width in pixels; empty where unknown."""
        ...


def rows_per_condition(rows: int, conditions: int) -> int:
    """How often each bound condition is repeated (sample-major) to serve a call of this many rows.

    Raises:
        ValueError: if `rows` is not a positive multiple of `conditions`.
    """
    if rows == 0 or conditions == 0 or rows % conditions:
        raise ValueError(
            f"a call of {rows} rows cannot be served by {conditions} bound conditions: "
            "rows must be conditions x parallel points, sample-major; bind the denoiser to this batch"
        )
    return rows // conditions
