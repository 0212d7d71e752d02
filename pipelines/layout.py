"""What a scheduler runs: a rule, its noise levels, and the network calls that they come to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..solvers.provenance import require_path
from ..solvers.registry import SIMPLEST, make_rule
from ..solvers.table import Table
from ..solvers.walk import Ask, History, Rule, Steps
from .frames import Frame, told_unshifted
from .grids import is_even, is_placeholder, require_agreement, shift_of, stock_levels
from .run import Call, PipelineWalk, calls_of, named_rule

Placement = Literal["bare", "serial", "batched"]


@dataclasses.dataclass(frozen=True)
class ScheduleRequest:
    """What a pipeline wants of `set_timesteps`.

    Raises:
        ValueError: for nothing at all.
    """

    steps: int | None = None
    timesteps: list[float] | None = None
    sigmas: list[float] | None = None
    mu: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.timesteps is None and self.sigmas is None:
            raise ValueError("give one of num_inference_steps, timesteps and sigmas")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A whole run, known before anything is sampled.

    Args:
        rule: asks.
        levels: (N+1,) float64 on the CPU.
        calls: in order.
        columns: slopes that the rule remembers.
        consistent: its weights sum to one.
        plain: per step, the call at its state that is told the state's own noise level; empty where every call is told
            what the pipeline tells it.
    """

    rule: Rule
    levels: Tensor
    calls: Sequence[Call]
    columns: int = 0
    consistent: bool = True
    plain: Sequence[Call] = ()

    @property
    def steps(self) -> int:
        """N."""
        return len(self.levels) - 1

    @property
    def order(self) -> int:
        """Pipelines that asked for the N steps of a rule count begin indices and progress in units of `order` calls."""
        return math.ceil(len(self.calls) / self.steps)

    def run(self, begin: int = 0) -> PipelineWalk:
        """One trajectory from the call with this index."""
        calls, plain = list(self.calls), self.plain
        first = next((i for i in range(begin, len(calls)) if calls[i].opens), 0)
        if first and plain and self.columns:  # without the slopes before: see `late_start`
            calls[first] = plain[calls[first].step]
        return PipelineWalk(self.rule, self.levels, calls, begin, self.columns, self.consistent)


def rule_layout(config: Mapping[str, Any], frame: Frame, request: ScheduleRequest) -> Layout:
    """A hand-made rule on the caller's own sigmas, or on those that the stock scheduler would use."""
    levels = stock_levels(config, frame, request.steps, request.timesteps, request.sigmas, request.mu)
    rule = named_rule(config["rule"], config["rule_order"], levels)
    return Layout(rule, levels, calls_of(rule, levels, frame.precondition, batched=False))


def understood(
    request: ScheduleRequest, config: Mapping[str, Any], frame: Frame, table: Table | None
) -> tuple[ScheduleRequest, Frame]:
    """What timesteps and sigmas mean together: one of them; on flows, a ramp to be shifted and told as it is.

    Raises:
        ValueError: when they do not agree.
    """
    if request.timesteps is None or request.sigmas is None:
        return request, frame
    require_agreement(frame, request.timesteps, request.sigmas)
    levels = [] if table is None else list(table.sigmas)
    if frame.path != "flow" or _close(request.sigmas, levels) or _close(request.sigmas, levels[:-1]):
        return dataclasses.replace(request, timesteps=None), frame
    frame = told_unshifted(frame, shift_of(config, request.mu))
    if table is None:
        return dataclasses.replace(request, sigmas=request.sigmas[: len(request.timesteps)]), frame
    if not is_even(request.sigmas, frame.num_timesteps):
        raise ValueError(f"sigmas = {request.sigmas} are not the table's own, {levels}: leave them out, it brings them")
    return ScheduleRequest(len(request.timesteps), mu=request.mu), frame


def require_fit(table: Table, frame: Frame) -> None:
    """Refuses a table that cannot work on this path.

    Raises:
        ValueError: naming both paths, or the sigma that a flow does not have.
    """
    remedy = "take a table that was learned for this kind of model"
    require_path(table.provenance.path, float(table.sigmas[0]), frame.path, "this pipeline's", remedy)


def table_layout(table: Table, frame: Frame, placement: Placement) -> Layout:
    """A table on its own sigmas. Without a hook (`bare`) the first call has to be at the pipeline's own latents.

    Raises:
        ValueError: without a hook, for a table that scales the guidance.
    """
    if placement == "bare" and table.scales_guidance:
        raise ValueError(
            "the table scales the guidance of its points, for which the network has to be heard: put it in with "
            "epd.enable(pipe, table), or take a table whose guidance_scale and anchor_guidance are 1"
        )
    table = table.sorted()  # image-to-image may begin between points: the noise must fall from each to the next
    moved = placement == "bare" and table.moves_first_call
    if moved and table.afs:
        table = dataclasses.replace(table, afs=False)
    levels = torch.tensor(table.sigmas, dtype=torch.float64)
    rule = asked_first(table.rule()) if moved and table.calls[0] == 0 else table.rule()
    calls = calls_of(rule, levels, frame.precondition, placement == "batched")
    hooked = placement != "bare" and (bool((table.anchor_scale != 1).any()) or table.scales_guidance)
    plain = calls_of(make_rule(SIMPLEST), levels, frame.precondition, batched=True) if hooked else ()
    return Layout(rule, levels, calls, table.columns, table.consistent, plain)


def asked_first(rule: Rule) -> Rule:
    """The rule with a first question at the initial state, whose answer is thrown away.

    Without a hook a pipeline's first call is at its own latents, where a table whose first step makes no call needs
    none.
    """

    def asking(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        if n == 0:
            yield Ask(x[None], sigma[None])
        return (yield from rule(x, sigma, sigma_next, n, history))

    return asking


def overruled(layout: Layout, request: ScheduleRequest) -> str:
    """What to tell somebody who asked for another number than the table's network calls; empty when it fits.

    Raises:
        ValueError: for sigmas or timesteps that are not the table's.
    """
    calls, levels = layout.calls, layout.levels.tolist()
    steps = len(request.sigmas) if request.sigmas is not None and is_placeholder(request.sigmas) else request.steps
    times = [call.timestep[0] for call in calls]
    own = (("sigmas", request.sigmas, [levels, levels[:-1]]), ("timesteps", request.timesteps, [times]))
    for name, values, rows in own:
        if values is not None and not is_placeholder(values) and not any(_close(values, row) for row in rows):
            raise ValueError(f"{name} = {values} are not the table's own, {rows[0]}: leave them out, it brings them")
    if steps is None or steps == len(calls):
        return ""
    return (
        f"num_inference_steps = {steps}, but the table has {layout.steps} steps in {len(calls)} network calls; these "
        f"are run: pass num_inference_steps={len(calls)}, from which the pipeline derives guidance windows, the begin "
        "of image-to-image and its progress bar"
    )


def _close(left: Sequence[float], right: Sequence[float]) -> bool:
    pairs = zip(left, right, strict=False)
    return len(left) == len(right) and all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7) for a, b in pairs)
