"""What a model must be like before anything long starts: asked in a handful of calls of a few rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .noise import unit_noise
from .protocol import Model, coefficient_device, denoised_at
from .rows import RowLimited, limit_rows

log = logging.getLogger("epd")
MEMBERS = (
    "name", "path", "shape", "sigma_min", "sigma_max", "guidance", "alphas_cumprod", "device", "for_seeds", "decode",
)  # fmt: skip
AGREE = 1e-2  # relative: half precision networks round differently in batches of different sizes


class ModelError(ValueError):
    """A model that cannot be solved: what is wrong with it and what mends it, in one sentence."""


def in_words(error: Exception) -> str:
    """An error in one line: its message, after its kind where the message alone says little (KeyError: 'a')."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, (RuntimeError, ValueError)) and text else f"{type(error).__name__}: {text}"


def check_model(model: Model, dtype: torch.dtype = torch.float32, decode: bool = False) -> None:
    """Refuses a model that would fail, or be silently wrong, later: four calls, of at most four rows.

    Its members are there and in range; outputs have the shape and dtype of x and are finite from sigma_max to
    sigma_min; a 0-d sigma and one of shape (B,) agree; a sample depends neither on its neighbours nor on how many
    points of it are evaluated together; equal calls have equal results.

    Args:
        dtype: of the state.
        decode: decode a sample, too.

    Raises:
        ModelError: naming what is wrong and the remedy.
    """
    check_members(model)
    _check_frame(model)
    try:
        with torch.no_grad():
            denoised = _check_calls(model, dtype)
            if decode:
                _check_pictures(model, denoised)
    except torch.OutOfMemoryError:  # a large model may be meant for one row at a time
        log.warning("%s: there is no memory for 4 rows at once, so not everything is checked", model.name)


def checked(
    model: Model, dtype: torch.dtype = torch.float32, rows: int | None = None, decode: bool = False
) -> RowLimited:
    """The model with calls of at most so many rows (see `limit_rows`), once `check_model` has let it pass."""
    check_members(model)
    limited = limit_rows(model, rows)
    check_model(limited, dtype, decode)
    return limited


def check_members(model: Model) -> None:
    """Refuses what lacks a member of `Model`.

    Raises:
        ModelError: naming all that are missing.
    """
    missing = [name for name in MEMBERS if name not in dir(model)]
    if missing or not callable(model):
        what = ", ".join(missing) or "__call__(x, sigma)"
        raise ModelError(
            f"{type(model).__name__} is no model, it has no {what}: make one with epd.own_model(denoise, shape=...) or "
            "epd.NetworkDenoiser"
        )


def require_guided(model: Model) -> None:
    """Refuses a model whose guidance cannot be scaled: asked in one call of one row.

    Raises:
        ValueError: by that call, naming the reason.
    """
    x, level = unit_noise([0], model.shape, torch.float32, model.device) * middle_sigma(model), middle_sigma(model)
    sigma, one = torch.tensor([level, 1.0], dtype=torch.float64, device=coefficient_device(x.device)).unbind()
    with torch.no_grad():
        denoised_at(model.for_seeds([0]), x, sigma, one)


def _check_frame(model: Model) -> None:
    if model.path not in ("ve", "flow"):
        raise ModelError(
            f"{model.name}: path = {model.path!r} is unknown, give 've' or 'flow'; a VP model is solved as 've' in "
            "x / alpha: own_model(path='vp'), or NetworkDenoiser with preconditioning.vp, do that"
        )
    if not model.shape or not all(isinstance(size, int) and size > 0 for size in model.shape):
        raise ModelError(f"{model.name}: shape = {model.shape!r} must be the positive sizes of one sample, no batch")
    low, high = model.sigma_min, model.sigma_max
    if not 0 < low < high < math.inf or (model.path == "flow" and high > 1 + 1e-6):
        top = "<= 1 on a flow path" if model.path == "flow" else "< infinity"
        raise ModelError(
            f"{model.name}: sigma_min = {low}, sigma_max = {high}: must be 0 < sigma_min < sigma_max {top}; "
            "give the noise levels that it was trained for"
        )
    try:
        torch.empty(0, device=model.device)
    except Exception as error:  # AssertionError without CUDA, RuntimeError for a name that is none
        raise ModelError(f"{model.name}: device = {model.device!r} is not there: {in_words(error)}") from error


def _check_calls(model: Model, dtype: torch.dtype) -> Tensor:
    """The two denoised samples of the middle noise level, after every check that needs a call."""
    seeds, sigma = [0, 1], middle_sigma(model)
    noise = unit_noise(seeds, model.shape, dtype, model.device)
    x, level = noise * sigma, torch.tensor(sigma, dtype=torch.float64, device=coefficient_device(noise.device))
    both = _denoised(model, seeds, x, level, "sigma 0-d")
    each = _denoised(model, seeds, x, level.expand(2), "sigma of shape (2,), a noise level for each row")
    if _apart(both, each, x):
        again = _denoised(model, seeds, x, level, "sigma 0-d")
        if _apart(both, again, x):
            raise ModelError(
                f"{model.name} gives two results for one input: switch dropout off (network.eval()) and draw no noise "
                "in it"
            )
        raise ModelError(
            f"{model.name} gives another result for sigma of shape (2,) than for 0-d, both of {sigma:.3g}: reshape "
            "sigma to (B, 1, ...) before it meets x"
        )
    alone = _denoised(model, seeds[1:], x[1:], level, "a single row")
    if _apart(both[1:], alone, x):
        raise ModelError(
            f"{model.name} gives another result for a sample alone than beside a second one: rows must be independent "
            "(network.eval(), no normalisation over the batch), and a seed's condition its own"
        )
    _check_points(model, noise, x, both)
    return both


def _check_points(model: Model, noise: Tensor, x: Tensor, both: Tensor) -> None:
    """Two points of each sample in one call, as solvers ask for them, from one end of the noise levels to the other."""
    low, high = model.sigma_min, model.sigma_max
    last = both[1] * (1 - low if model.path == "flow" else 1) + noise[1] * low  # near the data
    rows = torch.stack([noise[0] * high, x[0], x[1], last])
    sigmas = [high, *[middle_sigma(model)] * 2, low]
    levels = torch.tensor(sigmas, dtype=torch.float64, device=coefficient_device(x.device))
    points = _denoised(model, [0, 1], rows, levels, "two points of each of two samples (four rows, sample by sample)")
    if _apart(points[1:3], both, x):
        raise ModelError(
            f"{model.name} gives another result for a sample when two points of each are evaluated together: every row "
            "has its own noise level, and rows b K to b K + K - 1 the condition of sample b"
        )
    if low < 0.05 and float((points[3] - last).square().mean().sqrt()) > 0.5 * _size(last) + 3 * low:
        log.warning(
            "%s does not return nearly its input at its smallest noise level %.3g: does it return E[x0 | x], and not "
            "noise, a score or a velocity?", model.name, low,
        )  # fmt: skip


def _check_pictures(model: Model, states: Tensor) -> None:
    try:
        pictures = model.decode(states)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # code that is not ours may raise anything
        shown = in_words(error)
        raise ModelError(f"{model.name} fails to decode {tuple(states.shape)}: {shown}; mend decode") from error
    if not isinstance(pictures, Tensor) or len(pictures) != len(states) or not bool(pictures.isfinite().all()):
        shown = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ModelError(
            f"{model.name}: decode made {shown} of {tuple(states.shape)}: needed are finite pictures (B, C, H, W) in "
            "[0, 1]"
        )


def _denoised(model: Model, seeds: Sequence[int], x: Tensor, sigma: Tensor, what: str) -> Tensor:
    try:
        denoised = model.for_seeds(seeds)(x, sigma)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # code that is not ours may raise anything
        raise ModelError(
            f"{model.name} fails on x of shape {tuple(x.shape)} with {what}: {in_words(error)}; it must take sigma as "
            "0-d and as (B,), reshaped to (-1, 1, ...) before it meets x"
        ) from error
    if not isinstance(denoised, Tensor) or denoised.shape != x.shape or denoised.dtype != x.dtype:
        is_tensor = isinstance(denoised, Tensor)
        shown = f"{denoised.dtype} {tuple(denoised.shape)}" if is_tensor else type(denoised).__name__
        raise ModelError(
            f"{model.name} returned {shown} for {x.dtype} {tuple(x.shape)} with {what}: it must return E[x0 | x] in "
            "the shape and dtype of x"
        )
    if not bool(denoised.isfinite().all()):
        raise ModelError(
            f"{model.name} returned NaN or infinity with {what}, sigma {sigma.flatten().tolist()}: check its range of "
            "noise levels; in half precision try bfloat16 or float32"
        )
    return denoised


def _size(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _apart(first: Tensor, second: Tensor, x: Tensor) -> bool:
    """Whether two results differ by more than rounding, in any row."""
    worst = (first - second).double().flatten(1).square().mean(1).sqrt().max()
    return float(worst) > AGREE * (_size(x) + _size(second))


def middle_sigma(model: Model) -> float:
    """A noise level at which a denoiser is neither 0 nor the identity: 1/2 of a flow, the geometric mean of the range
    otherwise.
    """
    middle = math.sqrt(model.sigma_min * model.sigma_max)
    return min(max(0.5, model.sigma_min), model.sigma_max) if model.path == "flow" else middle
