"""Between a pipeline's rows, scaled for the network in the pipeline's dtype, and a solver's points in its own frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from .frames import Frame
from .grids import noise_level
from .run import Call

SAME_TIME = 1e-3  # between a call's timestep and what a pipeline makes of it
ROUNDED = 1e-3  # more is no rounding of a timestep to float32, but a noise level beyond the trained range


@dataclasses.dataclass
class EPDSchedulerOutput(BaseOutput):
    """What `EPDScheduler.step` returns.

    Args:
        prev_sample: the rows that the network gets next, B or B x K (sample-major); after the last call the result.
        pred_original_sample: the denoised state of every row of this call, in the frame x = x0 + sigma noise; after the
            last call the result, B rows.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


@dataclasses.dataclass(frozen=True)
class WideCall:
    """How the next network call differs from what the pipeline makes of it; `epd.enable`'s hook makes it so.

    Args:
        width: K, rows of the call for each row of the pipeline; `EPDScheduler.spread` makes them.
        timesteps: (K,) float32, what each of them is told.
        first: the scheduler's timestep that the pipeline will tell all of them.
        retold: even a single row is told another one.
    """

    width: int
    timesteps: Tensor
    first: float
    retold: bool = False


def rows_of(points: Tensor, scales: Sequence[float], dtype: torch.dtype) -> Tensor:
    """(B x K, *S), sample-major, of points (K, B, *S), each scaled for the network."""
    return torch.stack([x * c for x, c in zip(points, scales, strict=False)], dim=1).flatten(0, 1).to(dtype)


def points_of(sample: Tensor, points: Tensor, scales: Sequence[float]) -> Tensor:
    """The points that a pipeline's rows stand for: exactly those handed out, except where somebody changed the rows.

    Elementwise, so that half-precision rows cost no accuracy and nothing waits for the device.

    Raises:
        ValueError: for another number of rows, or another shape.
    """
    handed = rows_of(points, scales, sample.dtype)
    if handed.shape != sample.shape:
        raise ValueError(f"sample has shape {tuple(sample.shape)}, but {tuple(handed.shape)} was handed out by step")
    both = (sample == handed, sample.to(points.dtype))
    kept, theirs = (v.unflatten(0, (-1, len(points))).transpose(0, 1) for v in both)
    changed = torch.stack([row / c for row, c in zip(theirs, scales, strict=False)])
    return torch.where(kept, points, changed)


def moved_points(sample: Tensor, points: Tensor, scales: Sequence[float]) -> Tensor:
    """All points (K, B, *S), from a pipeline's rows of the first: what was changed there moves the others as far.

    Raises:
        ValueError: for another number of rows, or another shape.
    """
    first = points_of(sample, points[:1], scales[:1])
    return torch.cat([first, points[1:] + (first - points[:1])])


def spread(rows: Tensor, points: Tensor, scales: Sequence[float]) -> Tensor:
    """(R x K, ...), sample-major: all points, where a pipeline has R rows of the first, in copies one after another.

    Args:
        rows: (R, ...) of the first point, as the network would get them: repeated, cast, reshaped, perhaps changed.
        points: (K, B, *S) where slopes are to be evaluated.
        scales: (K,) what the network wants each of them multiplied with.

    Raises:
        ValueError: for rows that are not those of the points.
    """
    copies, left = divmod(len(rows), points.shape[1])
    if left or copies * points[0].numel() != rows.numel():
        raise ValueError(
            f"the network is called with {tuple(rows.shape)}, which is not what was handed out, "
            f"{tuple(points.shape[1:])}, in copies: use epd.enable(pipe, table, parallel=False)"
        )
    own = rows_of(points, scales, rows.dtype).unflatten(0, (-1, len(points)))
    own = own.repeat(copies, *[1] * (own.ndim - 1)).reshape(len(rows), len(points), *rows.shape[1:])
    moved = rows - own[:, 0]  # 0 where the pipeline left the state alone
    shares = (own[:, k] + moved * (scales[k] / scales[0]) for k in range(len(points)))
    return torch.stack(list(shares), dim=1).flatten(0, 1)


def levels_at(frame: Frame, timesteps: Tensor, calls: Sequence[Call], start: float, coming: int) -> tuple[Tensor, ...]:
    """sigma and c_in, float64 on the CPU, of the states that a pipeline has at these timesteps, (1,) or (B,).

    A call's timestep is what its network is told, which need not be the noise level of its state.

    Args:
        calls: of the run; other timesteps are those of their own noise levels.
        start: sigma that a run starts from, whatever its first call is told.
        coming: index of the next call, which is meant where several are told the same.
    """
    times = torch.as_tensor(timesteps).reshape(-1)
    sigma = noise_level(frame, times)
    scale = frame.precondition(sigma)[2]
    for row, time in enumerate(times.tolist()):
        own = [i for i, call in enumerate(calls) if abs(call.timestep[0] - time) < SAME_TIME]
        if not own:
            continue
        index = min(own, key=lambda i: (i < coming, i))
        level = calls[index].sigma[0] if index else start
        if calls[index].told[0] != level or abs(float(sigma[row]) / level - 1) > ROUNDED:
            sigma[row] = level
            scale[row] = calls[index].c_in[0] if index else frame.precondition(torch.tensor(level).double())[2]
    return sigma, scale


def noised(frame: Frame, clean: Tensor, noise: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    """A pipeline's latents, scale (alpha x0 + sigma eps).

    Args:
        clean, noise: (B, *S).
        sigma, scale: (1,) or (B,), of `levels_at`.
    """
    sigma, scale = (c.reshape(-1, *[1] * (clean.ndim - 1)) for c in (sigma, scale))
    work = torch.promote_types(clean.dtype, torch.float32)
    signal = 1 - sigma if frame.path == "flow" else torch.ones_like(sigma)
    signal, sigma = ((scale * c).to(clean.device, work) for c in (signal, sigma))
    return (signal * clean.to(work) + sigma * noise.to(work)).to(clean.dtype)


def position(timestep: Tensor | float, timesteps: Tensor, calls: Sequence[Call]) -> int:
    """Where in `timesteps` a pipeline begins that does not say so; of two calls at one timestep, at a step's first.

    An entry of ours is known by its place: learned noise levels may cross, and there is no need to wait for the device.
    """
    if isinstance(timestep, Tensor):
        mine, theirs = timesteps.untyped_storage(), timestep.untyped_storage()
        if mine.data_ptr() == theirs.data_ptr():
            return int(timestep.storage_offset())
    value = float(timestep)
    return min(range(len(calls)), key=lambda i: (abs(calls[i].timestep[0] - value), not calls[i].opens))


def evaluated(call: Call, points: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """D = c_skip x + c_out F and the slopes (x - D) / sigma at the points, both (K, B, *S).

    Raises:
        ValueError: when the network's output has another number of rows than the points.
    """
    width, samples = points.shape[:2]
    if len(output) != samples * width:
        raise ValueError(
            f"model_output has {len(output)} rows, expected {samples * width} ({samples} samples x {width} points); "
            "was epd.enable called on this pipeline, after its networks were last replaced?"
        )
    channels = points.shape[2]  # a learned variance may stand behind them
    values = output[:, :channels].to(points.dtype).unflatten(0, (samples, width)).unbind(1)
    pairs = list(zip(points, values, call.c_skip, call.c_out, strict=False))
    denoised = torch.stack([skip * x + out * f for x, f, skip, out in pairs])
    return denoised, torch.stack([(x - d) / s for x, d, s in zip(points, denoised, call.sigma, strict=False)])
