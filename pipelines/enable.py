"""`enable`, `disable` and `summary`: a learned solver goes into a live pipeline, and out again without a trace."""

from __future__ import annotations

import inspect
import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..solvers.table import Provenance, Table
from .configs import live_config
from .cuts import require_whole_steps
from .fan import FanHook
from .find import find_table
from .frames import require_untouched
from .layout import table_layout
from .probe import NETWORKS
from .scheduler import EPDScheduler

Pipe = Any  # any pipeline of diffusers


@dataclass(frozen=True)
class Enabled:
    """What `enable` did to one pipeline, so that `disable` can undo it."""

    stock: Any
    scheduler: EPDScheduler
    networks: tuple[str, ...]
    handles: tuple[RemovableHandle, ...]
    note: str


_enabled: weakref.WeakKeyDictionary[Pipe, Enabled] = weakref.WeakKeyDictionary()


def enable(pipe: Pipe, table: Table | str | Path | None = None, parallel: bool = True) -> Pipe:
    """Puts a learned solver into a pipeline; its calls stay as they were, `num_inference_steps` is the table's.

    The number to pass is that of the network calls, `epd.summary(pipe).depth`: a pipeline's loop counts those, and
    guidance windows, the begin of image-to-image and progress bars come from it. Any other runs the same table, with a
    warning.

    The stock scheduler is replaced, and each denoising network gets one forward pre-hook that makes the points of a fan
    the rows of one call. So does a ControlNet: it is asked again for every point, because its residuals change with the
    noise level (keeping those of the step's first call moved the result by a tenth of the control's whole effect).
    Networks may be compiled before or after, offloaded, adapted (LoRA, IP-Adapter). Pipelines made of the same
    components share the solver. Enabling again replaces the table.

    Pipelines that mix the latents with tensors of their own between calls (inpainting, image conditions beside the
    latents) have no room for a fan's rows: there the points are evaluated one after another, with the same result.
    Where two networks share the work by timestep (Wan 2.2), all points of a fan go to the one of its first point.
    `denoising_end` must lie between two steps: another is refused, naming the nearest; a refiner may begin anywhere.
    `callback_on_step_end` sees every network call, and the rows of the next one; `epd.on_states` shows it states only.

    Args:
        pipe: any pipeline with a `scheduler` and a unet or a transformer.
        table: a Table, or where it is (see `find_table`); by default that of the pipeline's own EPDScheduler.
        parallel: the points of a fan in one call; False: one call each, the same result.

    Returns:
        The pipeline itself.

    Raises:
        ValueError: for a table that cannot work here, or a pipeline without a network.
    """
    before = _enabled.get(pipe)
    stock = pipe.scheduler if before is None or pipe.scheduler is not before.scheduler else before.stock
    scheduler = _scheduler(stock, table)
    networks = tuple(name for name in NETWORKS if pipe.components.get(name) is not None)
    if not networks:
        raise ValueError(f"{type(pipe).__name__} has none of {', '.join(NETWORKS)}: there is no network to hook")
    note = _mixes(pipe)
    disable(pipe)
    scheduler.placement = "bare" if note else "batched" if parallel else "serial"
    handles: tuple[RemovableHandle, ...] = ()
    if scheduler.placement != "bare":
        hook = FanHook(scheduler, _watch(weakref.ref(pipe), scheduler))
        handles = tuple(pipe.components[n].register_forward_pre_hook(hook, with_kwargs=True) for n in networks)
    pipe.scheduler = scheduler
    _enabled[pipe] = Enabled(stock, scheduler, networks if handles else (), handles, note)
    _compare_model(pipe, scheduler)
    return pipe


def disable(pipe: Pipe) -> Pipe:
    """Takes the solver out: the stock scheduler object is back and no hook is left. Nothing to do is fine, too."""
    before = _enabled.pop(pipe, None)
    if before is None:
        return pipe
    for handle in before.handles:
        handle.remove()
    before.scheduler.placement = "bare"
    if pipe.scheduler is before.scheduler:
        pipe.scheduler = before.stock
    return pipe


StepCallback = Callable[[Pipe, int, Any, dict[str, Any]], dict[str, Any]]


def on_states(callback: StepCallback) -> StepCallback:
    """Makes a `callback_on_step_end` that sees solver steps and states where the pipeline has network calls and fans.

    `callback(pipe, n, timestep, kwargs)` is called after solver step n = 0, 1, ... with `latents` of one row per
    sample, and may return others. With any other scheduler it is called as ever.
    """

    def on_step_end(pipe: Pipe, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        live = _enabled.get(pipe)
        if live is None or pipe.scheduler is not live.scheduler:
            return callback(pipe, index, timestep, kwargs)
        width = live.scheduler.state_width
        if not width:
            return {}
        rows = kwargs.get("latents")
        seen = kwargs if rows is None else {**kwargs, "latents": rows[::width]}
        changed = callback(pipe, live.scheduler.steps_done - 1, timestep, seen)
        if rows is None or "latents" not in changed:
            return changed
        whole = rows.clone()
        whole[::width] = changed["latents"]
        return {**changed, "latents": whole}

    return on_step_end


@dataclass(frozen=True)
class Summary:
    """What runs in a pipeline.

    Args:
        scheduler: class name of the pipeline's scheduler.
        enabled: whether `enable` is in force.
        placement: `batched`, `serial` or `bare` (no hook).
        steps: N.
        depth: sequential network calls of one picture.
        nfe: network evaluations of one sample.
        width: K, rows per sample of the widest call.
        states: indices of `callback_on_step_end` whose latents are states, one row per sample; the last is the result.
        networks: hooked.
        note: why a fan is not evaluated in one call, where it is not.
    """

    scheduler: str
    enabled: bool = False
    placement: str = ""
    steps: int = 0
    depth: int = 0
    nfe: int = 0
    width: int = 0
    states: tuple[int, ...] = ()
    networks: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        if not self.enabled:
            return f"{self.scheduler}; no learned solver is enabled"
        lines = [
            f"{self.scheduler}, {self.placement}: {self.steps} steps, {self.depth} sequential network calls of up to "
            f"{self.width} rows per sample, {self.nfe} evaluations; call with num_inference_steps = {self.depth}",
            f"hooked: {', '.join(self.networks) or 'nothing'}; callbacks see states at {list(self.states)}",
        ]
        return "\n".join([*lines, self.note] if self.note else lines)


def summary(pipe: Pipe) -> Summary:
    """What `enable` put in: print it."""
    name, before = type(pipe.scheduler).__name__, _enabled.get(pipe)
    if before is None or pipe.scheduler is not before.scheduler:
        return Summary(name)
    assert before.scheduler.table is not None
    calls = table_layout(before.scheduler.table, before.scheduler.frame, before.scheduler.placement).calls
    ends = [i for i, call in enumerate(calls) if i + 1 == len(calls) or calls[i + 1].opens]
    # After a step's last call the next step's rows are handed out: states, unless they hold its look-ahead points, too.
    states = tuple(i for i in ends if i + 1 == len(calls) or len(calls[i + 1].slots) == 1)
    return Summary(
        name, True, before.scheduler.placement, calls[-1].step + 1, len(calls), sum(len(c.slots) for c in calls),
        max(len(c.slots) for c in calls), states, before.networks, before.note,
    )  # fmt: skip


def _scheduler(stock: Any, table: Table | str | Path | None) -> EPDScheduler:  # noqa: ANN401 - any scheduler
    if table is None:
        if "table" not in stock.config or stock.config["table"] is None:
            raise ValueError(f"the pipeline's scheduler, {type(stock).__name__}, brings no table: give one")
        table = Table.from_dict(dict(stock.config["table"]))
    scheduler = EPDScheduler.from_table(find_table(table), live_config(stock))
    require_untouched(stock, scheduler.frame)
    return scheduler


def _mixes(pipe: Pipe) -> str:
    """Why the pipeline's loop cannot carry a fan's rows; empty when it can."""
    taken = inspect.signature(type(pipe).__call__).parameters
    if "mask_image" in taken:
        return "the points of a fan are evaluated one after another: inpainting blends the latents between calls"
    if "image" in taken and "strength" not in taken and pipe.components.get("controlnet") is None:
        return "the points of a fan are evaluated one after another: an image stands beside the latents in every call"
    for name in ("unet", "transformer"):
        network = pipe.components.get(name)
        if network is not None:
            inside, outside = (network.config.get(side) for side in ("in_channels", "out_channels"))
            if isinstance(inside, int) and isinstance(outside, int) and inside > outside:
                return "the points of a fan are evaluated one after another: the network takes more than the latents"
    return ""


def _watch(pipe: weakref.ref[Pipe], scheduler: EPDScheduler) -> Callable[[Tensor], None]:
    """Compares a run's guidance and size with what the table was learned for, and says each difference once.

    A cut inside a step (`denoising_end`) is refused.
    """

    def watch(sample: Tensor) -> None:
        live, learned = pipe(), _learned(scheduler)
        if live is None:
            return
        run = scheduler.calls[scheduler.begin_index or 0 :]
        require_whole_steps(vars(live).get("_denoising_end"), run, len(scheduler))
        guidance = vars(live).get("_guidance_scale")
        if learned.guidance is not None and guidance is not None and not math.isclose(guidance, learned.guidance):
            _say(scheduler, f"guidance_scale = {guidance:g}, but the table was learned at {learned.guidance:g}")
        factor = vars(live).get("vae_scale_factor")
        if learned.resolution and factor is not None and sample.ndim == 4:
            size = tuple(int(side) * factor for side in sample.shape[2:])
            wanted = learned.resolution * 2 if len(learned.resolution) == 1 else learned.resolution[-2:]
            if size != wanted:
                _say(scheduler, f"the picture has {size} pixels, but the table was learned at {wanted}")

    return watch


def _compare_model(pipe: Pipe, scheduler: EPDScheduler) -> None:
    learned, name = _learned(scheduler), str(pipe.config.get("_name_or_path") or "")
    if learned.model and name and Path(learned.model).name != Path(name).name:
        _say(scheduler, f"the table was learned for {learned.model!r}, this pipeline is {name!r}")
    prediction = scheduler.frame.prediction
    known = {"flow_prediction": "flow"}.get(learned.prediction, learned.prediction)
    if known and known != prediction:
        _say(scheduler, f"the table was learned for prediction type {known!r}, this network's is {prediction!r}")
    start = 0.0 if scheduler.table is None else float(scheduler.table.sigmas[0])
    most = scheduler.frame.sigma_max
    if start > 1.05 * most:
        _say(scheduler, f"the table starts at sigma {start:g}, but this network was trained up to {most:g}")


def _learned(scheduler: EPDScheduler) -> Provenance:
    return Provenance() if scheduler.table is None else scheduler.table.provenance


def _say(scheduler: EPDScheduler, text: str) -> None:
    if scheduler.first_time(text):
        warnings.warn(text + "; a table learned for this case would do better", stacklevel=3)
