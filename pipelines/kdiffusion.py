"""A learned table as a k-diffusion sampler: the same call, the same callback dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoisers.protocol import beside, coefficient_device
from ..solvers.late import late_start
from ..solvers.rules import analytic_slope
from ..solvers.table import Table
from ..solvers.walk import Ask, drive, walk
from .find import find_table

Callback = Callable[[dict[str, Any]], None]


@torch.no_grad()
def sample_epd(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor | None = None,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    table: Table | str | Path,
    parallel: bool = True,
) -> Tensor:
    """Solves with a table, in the shape of k-diffusion's `sample_*` functions and, as they do, without gradients.

    The K points of a fan are one call of K B rows, point-major (row = k B + b), so that conditioning that is tiled to
    the batch fits; tensors of B rows in `extra_args` (also inside dictionaries, lists, tuples) are tiled here. With a
    `denoise_mask` in `extra_args` (ComfyUI's inpainting) the points are evaluated one after another: hosts keep noise
    and picture on the model, B rows each, and read one noise level per call.

    Args:
        model: `model(x, sigma (rows,), **extra_args) -> denoised`.
        x: (B, *S), the start state: noise * sigmas[0].
        sigmas: the table's own (`sigmas_of(table)`) or a contiguous part of them, with or without a last 0, which costs
            no call: tables end on their smallest sigma and are decoded there. None: the table's, without the 0. From a
            later sigma on a table that remembers slopes has none: the first one stands in for them (`late_start`).
        extra_args: passed to the model in every call.
        callback: called once for every interval of the sigmas with x, i, sigma, sigma_hat and denoised (at the step's
            first evaluated point, by the analytic slope in a step of no call; the result itself in the interval to 0).
        disable: hides the progress bar; None shows it on a terminal only.
        table: a Table, or where it is (see `find_table`).
        parallel: False evaluates the points one after another, B rows each: the same result with less memory.

    Raises:
        ValueError: for sigmas that are not the table's, or a table that scales the guidance.
    """
    from tqdm.auto import tqdm

    table = find_table(table)
    if table.scales_guidance:
        raise ValueError(
            "the table scales the guidance of its points, which a k-diffusion model keeps to itself: take a table "
            "whose guidance_scale and anchor_guidance are 1 (learned without --learn-guidance)"
        )
    first, last = (0, table.num_steps) if sigmas is None else _part_of(table, sigmas)
    levels = torch.tensor(table.sigmas[: last + 1], dtype=torch.float64, device=coefficient_device(x.device))
    rule = late_start(table.rule(), first, table.columns, table.consistent) if first and table.columns else table.rule()
    seen: list[Tensor] = []  # the denoised state at the first point that the present step asked for

    def answer(ask: Ask) -> Tensor:
        denoised = _denoised(model, ask, extra_args or {}, parallel)
        if ask.site.stage == 0:
            seen.append(denoised[0])
        divisor = beside(ask.sigma, denoised).reshape(-1, *[1] * (denoised.ndim - 1))
        return (ask.points - denoised) / divisor

    def report(n: int, x: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            sigma = levels[n].to(x.dtype)
            callback({"x": x, "i": n - first, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

    decoded = sigmas is not None and float(sigmas[-1]) == 0  # an interval to 0, which hosts count as a step
    with tqdm(total=last - first + decoded, disable=disable) as bar:
        for state in drive(walk(rule, x, levels, first), answer):
            bar.update()
            sigma = levels[state.step - 1]
            report(state.step - 1, x, seen.pop() if seen else x - sigma * analytic_slope(x, sigma))
            x = state.x
        if decoded:
            bar.update()
            report(last, x, x)
    return x


def sigmas_of(table: Table | str | Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """The table's sigmas as k-diffusion and ComfyUI pass them around: (N+2,), the last one 0."""
    table = find_table(table)
    return torch.tensor([*table.sigmas.tolist(), 0.0], dtype=dtype)


def _part_of(table: Table, sigmas: Tensor) -> tuple[int, int]:
    """First and last index of these sigmas among the table's."""
    own, levels = table.sigmas.tolist(), sigmas.detach().cpu().to(torch.float64).tolist()
    levels = levels[:-1] if levels and levels[-1] == 0 else levels
    close = [i for i, value in enumerate(own) if levels and abs(value - levels[0]) <= 1e-3 * value]
    first = close[0] if close else 0
    part = own[first : first + len(levels)]
    if not close or len(part) != len(levels) or any(abs(a - b) > 1e-3 * a for a, b in zip(part, levels, strict=True)):
        raise ValueError(
            f"sigmas = {[round(s, 4) for s in levels]} are not those that the table was learned for, "
            f"{[round(s, 4) for s in own]}: pass sigmas_of(table), or a contiguous part of it"
        )
    return first, first + len(levels) - 1


def _denoised(model: Callable[..., Tensor], ask: Ask, extra_args: Mapping[str, Any], parallel: bool) -> Tensor:
    """(K, B, *S)."""
    count, batch = ask.points.shape[:2]
    network_sigma = ask.network_sigma.reshape(count, -1).expand(count, batch)
    network_sigma = beside(network_sigma, ask.points)
    if not parallel or extra_args.get("denoise_mask") is not None:
        return torch.stack([model(p, t, **extra_args) for p, t in zip(ask.points, network_sigma, strict=True)])
    tiled = {name: _tiled(value, batch, count) for name, value in extra_args.items()}
    return model(ask.points.flatten(0, 1), network_sigma.flatten(), **tiled).unflatten(0, (count, batch))


def _tiled(value: Any, batch: int, count: int) -> Any:  # noqa: ANN401 - a caller's own arguments
    if count == 1:
        return value
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value.repeat(count, *[1] * (value.ndim - 1))
    if isinstance(value, dict):
        return {key: _tiled(item, batch, count) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_tiled(item, batch, count) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
