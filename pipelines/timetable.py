"""The part of the scheduler that says how many network calls there are, where a run begins, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..solvers.questions import Question
from ..solvers.table import Table
from .calls_in_progress import pipeline_call
from .choices import Choices
from .configured import StockConfigured
from .cuts import begins_at_a_time
from .exchange import SAME_TIME, levels_at, noised, position
from .frames import Frame
from .guidance import GuidanceScaling
from .layout import Layout, Placement, ScheduleRequest, overruled, rule_layout, table_layout, understood
from .placement import placed
from .run import Call, PipelineWalk

MOVED = (
    "the table's first slope is analytic, but without epd.enable(pipe, table) the first network call cannot be moved "
    "to where it is needed: the network is asked at the initial latents, too, which is one call more, and "
    "num_inference_steps counts it"
)


class Timetable(StockConfigured):
    """`timesteps`, one entry per network call, and the index in them; `EPDScheduler` is the only one."""

    order = 1
    table: Table | None
    placement: Placement
    timesteps: Tensor
    sigmas: Tensor
    num_inference_steps: int | None

    def _start(self) -> None:
        self.placement = "bare"  # of a loop that is not a pipeline's
        self.parallel = True  # the points of a fan in one call, in pipelines that can
        self.choices: Choices | None = None  # of calls that are taken apart where that was measured to be faster
        self.laid_out_in: int | None = None  # number of the pipeline's call that the run belongs to
        self._placement: Placement = "bare"  # of this run
        self.num_inference_steps = None
        self._one_step = False  # was asked for, however many network calls these are
        self._layouts: dict[tuple[Placement, Frame], Layout] = {}
        self._layout: Layout | None = None
        self._forget()

    def _forget(self) -> None:
        """No run has begun."""
        self.watched = False  # somebody asks what each call answers
        self._run: PipelineWalk | None = None
        self._trajectory = object()  # not that of any run before
        self._question: Question | None = None
        self._handed: tuple[Tensor, int] | None = None
        self._begin_index: int | None = None
        self._noised = False
        self._guiding = GuidanceScaling()

    @property
    def step_index(self) -> int | None:
        """How many network calls were answered since the first entry of `timesteps`."""
        return None if self._run is None else self._run.index

    @property
    def begin_index(self) -> int | None:
        """Where in `timesteps` the run begins."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Image-to-image pipelines begin in the middle of `timesteps`.

        Raises:
            ValueError: beyond the last call.
        """
        calls = self.calls
        if calls and not 0 <= begin_index < len(calls):
            steps = "" if self.table is None else f"call with num_inference_steps = {len(calls)} and "
            raise ValueError(
                f"begin_index = {begin_index} is beyond the {len(calls)} network calls: {steps}begin at one of them "
                f"(image-to-image: a strength of at least 1/{len(calls)})"
            )
        self._begin_index = begin_index

    @property
    def calls(self) -> Sequence[Call]:
        """The network calls of a run, one per entry of `timesteps`; none before `set_timesteps`."""
        return () if self._layout is None else self._layout.calls

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Lays out the network calls: `timesteps` on the device, `sigmas` at each call's first slope, and the last.

        Args:
            num_inference_steps: steps of a hand-made rule; with a table its network calls in this placement.
            timesteps, sigmas: the caller's own, instead; both as CogView4 and GLM-Image pass them, see `understood`.
            mu: of flows with a dynamic shift; a table needs none.
        """
        times, levels = (None if v is None else [float(s) for s in v] for v in (timesteps, sigmas))
        request = ScheduleRequest(num_inference_steps, times, levels, mu)
        request, frame = understood(request, self.config, self.frame, self.table)
        if self.table is None:
            self._layout = rule_layout(self.config, frame, request)
        else:
            self._place()
            if (key := (self._placement, frame)) not in self._layouts:  # a table is the same in every run
                self._layouts = {key: table_layout(self.table, frame, self._placement)}
            self._layout = self._layouts[key]
            self._say(overruled(self._layout, request))
            if self._placement == "bare" and self.table.moves_first_call:
                self._say(MOVED)
        steps, calls = self._layout.steps, self._layout.calls
        self._scale_at_start = float(self.frame.precondition(self._layout.levels[0])[2])
        # Pipelines that bring their own sigmas or timesteps count the entries of ours afterwards.
        counts_steps = self.table is None and num_inference_steps is not None and not begins_at_a_time()
        self.order = self._layout.order if counts_steps else 1
        self._one_step = num_inference_steps == 1
        self.num_inference_steps = steps if self.table is None else len(calls)
        self._network_times = [torch.tensor(c.timestep, dtype=torch.float32, device=device) for c in calls]
        self.timesteps = torch.tensor([c.timestep[0] for c in calls], dtype=torch.float32, device=device)
        ends = [*(c.sigma[0] for c in calls), float(self._layout.levels[-1])]
        self.sigmas = torch.tensor(ends, dtype=torch.float32)
        self._forget()

    def _place(self) -> None:
        """Where the points of this run are evaluated: the pipeline that runs decides, not the one that was enabled."""
        call = pipeline_call()
        mine = call is not None and vars(call.pipe).get("scheduler") is self
        self.laid_out_in = call.number if call is not None and mine else None
        self._placement = self.placement
        if call is not None:  # a pipeline that steps by a copy of its scheduler has states that no hook knows
            self._placement, note = placed(call.pipe, self.parallel, call.arguments()) if mine else ("bare", "")
            self._say(note if self._placement == "serial" else "")

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins a run of its own: one that is under way cannot be copied, nor continued by two."""
        fresh = {"_run": None, "_question": None, "_handed": None, "_guiding": GuidanceScaling(), "laid_out_in": None}
        return {**vars(self), **fresh}

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The latents at these timesteps, (1,) or (B,), of clean ones: alpha x0 + sigma eps in the pipeline's frame.

        At the timestep of a call sigma is the noise level of the state there, whatever the network is told.
        """
        self._noised = True
        if self._layout is not None and self._run is None and self._begin_index is None:
            # Some image-to-image pipelines never say where they begin, but all make their first latents here.
            begin = position(timesteps.flatten()[:1].cpu(), self.timesteps, self._layout.calls)
            if abs(self._layout.calls[begin].timestep[0] - float(timesteps.flatten()[0])) < SAME_TIME:
                self._begin_index = begin
        coming = (self._begin_index or 0) if self._run is None else self._run.index
        start = float(self._layout.levels[0]) if self._layout is not None else 0.0
        levels = levels_at(self.frame, timesteps, self.calls, start, coming)
        return noised(self.frame, original_samples, noise, *levels)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name and the argument order that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)
