"""What turns one call of a pipeline's network into the call of a whole fan."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoisers.arguments import NetworkArguments
from .advice import compare_run
from .calls_in_progress import pipeline_call
from .exchange import WideCall
from .fan_rows import marked
from .frames import ALMOST_T, TIMES
from .scheduler import EPDScheduler

# Positions, the same for every sample: their length may happen to equal the number of rows.
SHARED = frozenset(
    ("img_ids", "txt_ids", "image_rotary_emb", "rotary_emb", "freqs_cis", "controlnet_mode", "ip_adapter_masks")
)
# Which of TIMES a pipeline tells its networks: read off its first wide call, for that waits for the device.
_units: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def widen(module: torch.nn.Module, call: NetworkArguments) -> bool:
    """A change for `denoisers.hooks`: K rows where the pipeline has one, each with its own timestep.

    Only calls that a pipeline itself makes in the run that its scheduler laid out are changed: not those of a callback,
    of another pipeline or thread, nor any after a run was interrupted.
    """
    current = pipeline_call()
    if current is None or not current.direct:
        return False
    scheduler = vars(current.pipe).get("scheduler")
    if not isinstance(scheduler, EPDScheduler) or scheduler.laid_out_in != current.number:
        return False
    choices = scheduler.choices
    if choices is not None and choices.inside:
        return False
    if scheduler.step_index is None:
        compare_run(current, scheduler, call.state)
    control = module is vars(current.pipe).get("controlnet")  # whose output goes into the network
    hear, wide = None if control else scheduler.listener, scheduler.wide_call
    call.finish = hear
    if wide is None:
        return False
    listed, plain = isinstance(call.state, list), call.copy()
    state = torch.stack(call.state) if listed else call.state
    rows = scheduler.spread(state)
    if wide.width > 1 or wide.retold:
        call.time = _own_times(current.pipe, call.time, wide, len(scheduler), state)
    if wide.width > 1:
        frames = state.shape[2] if state.ndim == 5 and not listed else 1
        lengths = (len(state), len(state) * frames)
        call.change_conditioning(lambda name, value: _repeated(name, value, lengths, wide.width, listed))
    call.state = list(rows.unbind()) if listed else rows
    if wide.width > 1 and not control:
        join = None
        if choices is not None and _may_be_apart(current.pipe, scheduler):
            join = choices.apply(module, call, plain, wide.width)
        call.finish = functools.partial(_in_turn, [join, hear, marked])
    return True


def _may_be_apart(pipe: Any, scheduler: EPDScheduler) -> bool:  # noqa: ANN401
    """Whether a wide call may become one for each point: nobody follows it, and nothing else belongs to its rows.

    Who makes calls cheaper asks what each of them answers, but not before the first one of a run.
    """
    followed = scheduler.step_index is None or scheduler.watched
    return not followed and vars(pipe).get("controlnet") is None


def _in_turn(changes: Sequence[Callable[[Any], Any] | None], output: Any) -> Any:  # noqa: ANN401 - any network's output
    for change in changes:
        output = output if change is None else change(output)
    return output


def _own_times(pipe: Any, time: Any, wide: WideCall, count: int, state: Tensor) -> Tensor:  # noqa: ANN401
    """(R x K,) or (R x K, tokens): each row's own time, in the units that this pipeline tells its network."""
    common = time if isinstance(time, Tensor) else torch.tensor(time, device=state.device)
    own = wide.timesteps.to(common.device)
    if common.ndim == 2:  # one time per token, some of them 0: those of a first frame that is kept
        ratio = (own / wide.first).repeat(len(state))
        rows = common.expand(len(state), -1).repeat_interleave(wide.width, 0)
        return (rows * ratio[:, None]).to(common.dtype)
    if pipe not in _units:
        _units[pipe] = units(float(common.flatten()[-1]), wide.first, float(count), common.dtype)
    return TIMES[_units[pipe]](own, float(count)).repeat(len(state)).to(common.dtype)


def units(seen: float, timestep: float, count: float, dtype: torch.dtype) -> str:
    """Which of TIMES turns the scheduler's timestep into what the network was told; integers are cut off.

    Raises:
        ValueError: when it is none of them.
    """
    exact = torch.tensor(timestep, dtype=torch.float64)
    errors = {name: abs(float(convert(exact, count)) - seen) for name, convert in TIMES.items()}
    if dtype not in (torch.float32, torch.float64):
        del errors[ALMOST_T]  # what is rounded to whole numbers is t itself
    best = min(errors, key=lambda name: errors[name])
    if errors[best] > _rounding(seen, dtype):
        raise ValueError(
            f"the scheduler's timestep {timestep:g} reaches the network as {seen:g}, none of {', '.join(TIMES)}: "
            "use epd.enable(pipe, table, parallel=False)"
        )
    return best


def _rounding(seen: float, dtype: torch.dtype) -> float:
    """How far a time that went through the scheduler's float32 and this type may be off; integers lose up to 1."""
    if not dtype.is_floating_point:
        return 1.0
    return 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * max(1.0, abs(seen))


def _repeated(name: str, value: Any, lengths: tuple[int, int], width: int, listed: bool) -> Any:  # noqa: ANN401
    """Conditioning with a row per sample, or per frame of each sample, at any depth, for the points of each sample.

    Where the state is a list with one entry per sample, so is the conditioning, and what is inside an entry is left.
    """
    if name in SHARED:
        return value
    if listed and isinstance(value, list):
        return [entry for entry in value for _ in range(width)] if len(value) == lengths[0] else value
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) not in lengths:
            return value
        return value.unflatten(0, (lengths[0], -1)).repeat_interleave(width, 0).flatten(0, 1)
    if isinstance(value, dict):
        return {k: _repeated(k, v, lengths, width, listed) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_repeated(name, v, lengths, width, listed) for v in value)
    return value
