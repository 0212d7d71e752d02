"""Runs that a pipeline cuts in two at a timestep, as Stable Diffusion XL does for its refiner."""

from __future__ import annotations

from collections.abc import Sequence

from .calls_in_progress import pipeline_call
from .run import Call


def begins_at_a_time() -> bool:
    """Whether the pipeline that runs looks for its first call by `denoising_start`.

    Those do it entry by entry of `timesteps`. Where a scheduler's order is 2 they go one back from an odd one, because
    stock schedulers of this order have an odd number of entries; ours may have one more, and can begin at any.
    """
    call = pipeline_call()
    return call is not None and isinstance(call.arguments().get("denoising_start"), float)


def calls_before(end: float, times: Sequence[float], count: float) -> int:
    """How many of the entries of `timesteps` a pipeline runs with this `denoising_end`, by its own rule."""
    cutoff = round(count - end * count)
    return sum(time >= cutoff for time in times)


def require_whole_steps(end: object, calls: Sequence[Call], count: float) -> None:
    """Refuses a `denoising_end` inside a step, at which the pipeline does not hold the state.

    Args:
        end: the pipeline's `denoising_end`; pipelines heed numbers between 0 and 1 only.
        calls: those of this run.
        count: T, trained timesteps.

    Raises:
        ValueError: naming the nearest ends that can be had.
    """
    if not isinstance(end, float) or not 0 < end < 1:
        return
    times = [call.timestep[0] for call in calls]
    last = calls_before(end, times, count)
    if last == len(calls) or calls[last].opens:
        return
    falling = sorted(times, reverse=True)  # pipelines count entries, which need not fall from each to the next
    places = {i: _between(i, falling, count) for i, call in enumerate(calls) if i and call.opens}
    allowed = [e for i, e in places.items() if calls_before(e, times, count) == i]
    nearest = sorted(sorted(allowed, key=lambda e: abs(e - end))[:2])
    remedy = "give " + " or ".join(f"{e:g}" for e in nearest) if nearest else "no end between two steps can be had"
    raise ValueError(f"denoising_end = {end:g} cuts the table's step {calls[last].step} in two: {remedy}")


def _between(number: int, falling: Sequence[float], count: float) -> float:
    """An end with this number of timesteps before it."""
    return round(1 - (falling[number - 1] + falling[number]) / 2 / count, 4)
