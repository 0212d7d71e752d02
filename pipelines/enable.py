"""`enable`, `disable` and `summary`: a learned solver goes into a live pipeline, and out again without a trace."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..denoisers.hooks import attach
from ..solvers.graphs import MakeGraph
from ..solvers.table import Table
from .advice import compare_model
from .choices import Choices
from .configs import live_config
from .fan import widen
from .find import find_table
from .frames import require_untouched
from .graphed import graphed
from .layout import table_layout
from .placement import FAN, mixes, networks_in, placed
from .probe import NETWORKS
from .scheduler import EPDScheduler

Pipe = Any  # any pipeline of diffusers
PipelineAnswer: TypeAlias = Literal["batched", "serial", "auto"]


@dataclass(frozen=True)
class Enabled:
    """What `enable` did to one pipeline, so that `disable` can undo it."""

    stock: Any
    scheduler: EPDScheduler
    networks: tuple[str, ...]
    releases: tuple[weakref.finalize, ...]


_enabled: weakref.WeakKeyDictionary[Pipe, Enabled] = weakref.WeakKeyDictionary()


def enable(
    pipe: Pipe,
    table: Table | str | Path | None = None,
    parallel: bool = True,
    answer: PipelineAnswer | None = None,
    graphs: bool | MakeGraph = False,
) -> Pipe:
    """Puts a learned solver into a pipeline; its calls stay as they were, `num_inference_steps` is the table's.

    The number to pass is that of the network calls, `epd.summary(pipe).depth`: a pipeline's loop counts those, and
    guidance windows, the begin of image-to-image and progress bars come from it. Any other runs the same table, with a
    warning.

    The stock scheduler is replaced, and each denoising network gets one forward pre-hook that makes the points of a fan
    the rows of one call. So does a ControlNet: it is asked again for every point, because its residuals change with the
    noise level (keeping those of the step's first call moved the result by a tenth of the control's whole effect).
    Networks may be compiled before or after, offloaded, adapted (LoRA, IP-Adapter). The hook changes the calls that
    this pipeline makes in its own runs and no others: not those of another pipeline or thread on the same network, of
    callbacks, or after an interrupted run; when the pipeline is garbage collected, it is gone.

    The pipeline itself holds one row per sample at any time, whatever a call evaluates. Where that is not enough, the
    points are evaluated one after another, with the same result: in pipelines that mix the latents with tensors of
    their own between calls (inpainting, image conditions beside the latents), with networks that take a second state
    or time or have an active cache, under guidance that depends on the time or keeps momentum, in pipelines that
    combine latents and output themselves, and in loops that are not a pipeline's call. `summary` says why.
    Pipelines made of
    the same components share the solver; each of them is treated as its own loop needs.
    Where two networks share the work by timestep (Wan 2.2), all points of a fan go to the one of its first point.
    `denoising_end` must lie between two steps: another is refused, naming the nearest; a refiner may begin anywhere.
    `callback_on_step_end` sees every network call, and inside a step the first point of the next; `epd.on_states`
    shows it states only.

    Args:
        pipe: any pipeline with a `scheduler` and a unet or a transformer.
        table: a Table, or where it is (see `find_table`); by default that of the pipeline's own EPDScheduler.
        parallel: the points of a fan in one call; False: one call each, the same result.
        answer: the same by the name that it has in `solve`: `batched`, `serial`, or `auto`, which measures at the first
            fan of each shape, by a few more calls of it, whether the network is faster with all of its points in one
            call or in one each, and keeps to that (`summary` says what was found). The number of the pipeline's calls
            stays that of `batched`. Accelerated networks and those beside a ControlNet are not measured, and batched.
            None: what `parallel` says.
        graphs: replay the networks' calls of this pipeline's runs from CUDA graphs, one for each of their shapes: no
            Python, no launches. What can't be is said once and runs as it is. Or what makes the graphs:
            `epd.CompiledGraph` fuses kernels, too, and takes minutes to begin.

    Returns:
        The pipeline itself.

    Raises:
        ValueError: for a table that cannot work here, an answer that a pipeline cannot give, or a pipeline without a
            network.
        TypeError: for anything but a pipeline of diffusers.
    """
    if not isinstance(pipe, (DiffusionPipeline, ModularPipeline)):
        raise TypeError(f"{type(pipe).__name__} is no pipeline of diffusers: give one, or epd.solve your own model")
    parallel = _answered(answer, parallel)
    before = _enabled.get(pipe)
    stock = pipe.scheduler if before is None or pipe.scheduler is not before.scheduler else before.stock
    scheduler = _scheduler(stock, table)
    networks = networks_in(pipe)
    if not networks:
        raise ValueError(f"{type(pipe).__name__} has none of {', '.join(NETWORKS)}: there is no network to hook")
    assert scheduler.table is not None
    mixing = mixes(pipe)
    if mixing and scheduler.table.scales_guidance:
        raise ValueError(
            f"the table scales the guidance of its points, which {type(pipe).__name__} leaves no room for ({mixing}): "
            "take a table whose guidance_scale and anchor_guidance are 1"
        )
    disable(pipe)
    scheduler.parallel, scheduler.choices = parallel, Choices() if answer == "auto" else None
    hooked = {} if mixing else networks
    releases = tuple(attach(network, FAN, widen, pipe) for network in hooked.values())
    if graphs:
        releases += graphed(pipe, None if graphs is True else graphs)
    pipe.scheduler = scheduler
    _enabled[pipe] = Enabled(stock, scheduler, tuple(hooked), releases)
    compare_model(pipe, scheduler)
    return pipe


def disable(pipe: Pipe) -> Pipe:
    """Takes the solver out: the stock scheduler object is back and no hook is left. Nothing to do is fine, too."""
    before = _enabled.pop(pipe, None)
    if before is None:
        return pipe
    for release in before.releases:
        release()
    if pipe.scheduler is before.scheduler:
        pipe.scheduler = before.stock
    return pipe


StepCallback = Callable[[Pipe, int, Any, dict[str, Any]], dict[str, Any]]


def on_states(callback: StepCallback) -> StepCallback:
    """Makes a `callback_on_step_end` that sees solver steps and states where the pipeline has network calls.

    `callback(pipe, n, timestep, kwargs)` is called after solver step n = 0, 1, ... and may return other `latents`; not
    after a first step of no call, which the next one follows at once. With any other scheduler it is called as ever.
    """

    def on_step_end(pipe: Pipe, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        live = _enabled.get(pipe)
        if live is None or pipe.scheduler is not live.scheduler:
            return callback(pipe, index, timestep, kwargs)
        return callback(pipe, live.scheduler.steps_done - 1, timestep, kwargs) if live.scheduler.at_state else {}

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
        states: indices of `callback_on_step_end` whose latents are states; the last is the result.
        networks: hooked.
        note: why a fan is not evaluated in one call, where it is not.
        choices: of the answer `auto`, one line for each shape that was measured.
        accelerated: what `epd.accelerate` put in, and what that costs; lines.
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
    choices: tuple[str, ...] = ()
    accelerated: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.enabled:
            return "\n".join([f"{self.scheduler}; no learned solver is enabled", *self.accelerated])
        lines = [
            f"{self.scheduler}, {self.placement}: {self.steps} steps, {self.depth} sequential network calls of up to "
            f"{self.width} rows per sample, {self.nfe} evaluations; call with num_inference_steps = {self.depth}",
            f"hooked: {', '.join(self.networks) or 'nothing'}; callbacks see states at {list(self.states)}",
        ]
        return "\n".join([*lines, *([self.note] if self.note else []), *self.choices, *self.accelerated])


def summary(pipe: Pipe) -> Summary:
    """What `enable` put in: print it."""
    name, before = type(pipe.scheduler).__name__, _enabled.get(pipe)
    if before is None or pipe.scheduler is not before.scheduler:
        return Summary(name)
    assert before.scheduler.table is not None
    placement, note = placed(pipe, before.scheduler.parallel)
    calls = table_layout(before.scheduler.table, before.scheduler.frame, placement).calls
    states = tuple(i for i in range(len(calls)) if i + 1 == len(calls) or calls[i + 1].opens)
    return Summary(
        name, True, placement, calls[-1].step + 1, len(calls), sum(len(c.slots) for c in calls),
        max(len(c.slots) for c in calls), states, before.networks, note,
        () if before.scheduler.choices is None else before.scheduler.choices.lines(),
    )  # fmt: skip


def _answered(answer: str | None, parallel: bool) -> bool:
    """Whether the points of a fan are evaluated in one call."""
    if answer is None:
        return parallel
    if answer not in (names := get_args(PipelineAnswer)):
        raise ValueError(
            f"answer = {answer!r}: a pipeline's calls are its own, and their number is known before a run: give "
            f"{', '.join(names[:-1])} or {names[-1]}, or solve epd.from_pipeline(pipe) with that answer"
        )
    if answer != "serial" and not parallel:
        raise ValueError(f"answer = {answer!r} is not parallel = False: leave one of the two out")
    return answer != "serial"


def _scheduler(stock: Any, table: Table | str | Path | None) -> EPDScheduler:  # noqa: ANN401 - any scheduler
    if table is None:
        if "table" not in stock.config or stock.config["table"] is None:
            raise ValueError(f"the pipeline's scheduler, {type(stock).__name__}, brings no table: give one")
        table = Table.from_dict(dict(stock.config["table"]))
    scheduler = EPDScheduler.from_table(find_table(table), live_config(stock))
    require_untouched(stock, scheduler.frame)
    return scheduler
