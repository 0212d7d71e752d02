"""EPDScheduler: the solver's rules as a scheduler of diffusers. A pipeline's network calls answer what a rule asks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401 - loading wants the name in this module
from torch import Tensor

from ..solvers import registry
from ..solvers.questions import Question
from ..solvers.table import Table
from .exchange import EPDSchedulerOutput, WideCall, evaluated, moved_points, position, rows_of, spread
from .fan_rows import unmarked
from .layout import Layout, require_fit
from .run import PipelineWalk
from .timetable import Timetable

RULES = (*registry.RULES, "table")


class EPDScheduler(Timetable):
    r"""A learned table, or a hand-made rule, in any diffusers pipeline.

    `timesteps` has one entry per network call. The pipeline's latents are c_in x, what its network wants: on variance-
    preserving schedules x / sqrt(1 + sigma^2) as with DDIM, on flows x itself. `scale_model_input` is the identity.

    `num_inference_steps` counts what a pipeline's loop counts. A table owns its sigmas, and its `timesteps` are the
    network calls of the placement in force (`epd.summary(pipe).depth` of them): that number is the one to call the
    pipeline with. Any other is overruled with a warning, because pipelines derive guidance windows (SD3's skipped
    layers, modular guiders), the begin of image-to-image and progress bars from the number that they were called with.
    `order` is 1 then: every entry counts. Put into a pipeline by hand, without `epd.enable`, a table whose first slope
    is analytic takes one call more, at the pipeline's own latents; where its first step makes no call the answer is
    thrown away, and the result is the same. For the hand-made rules the number is that of steps, as with the stock
    schedulers: Heun and DPM2 have 2N - 1 entries and order 2.

    Hand-made rules run on the stock scheduler's sigmas for that many steps. `sigmas=` or `timesteps=` are honoured
    exactly by them (a trailing 0 is added, nothing is shifted) and have to be a table's own. The points of a fan are
    evaluated one after another; in one call after `epd.enable(pipe, table)`. Coefficients are float64; the state is
    kept in float32 at least. Predictions are not clipped or thresholded.

    Args:
        num_train_timesteps ... shift_terminal: as in the stock schedulers, so that `from_config` understands theirs.
        prediction_type: `epsilon`, `v_prediction`, `sample` or `flow_prediction`.
        rule: `euler`, `heun`, `dpm2`, `ipndm`, `dpmpp` or `table`.
        rule_order: of ipndm (1-4, default 4) and dpmpp (1-3, default 2).
        table: `Table.to_dict()`.
        unit_variance: the first latents are unit noise and the last are scaled back, as with DDIM; False is
            x = noise sigma_0 and the result x itself, as `epd.solve` does. By default as in stock; False with a table.
        stock_class: whose noise levels these are. `from_config` sets it; None is what the other values read like.

    Reference: arXiv 2507.14797.
    """


    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        rule: str = RULES[0],
        rule_order: int | None = None,
        table: Mapping[str, Any] | None = None,
        unit_variance: bool | None = None,
        stock_class: str | None = None,
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule = {rule!r} is unknown: give one of {', '.join(RULES)}")
        if (rule == "table") != (table is not None):
            raise ValueError(f"rule = {rule!r} with{'out' * (table is None)} a table: from_table sets both")
        self.table = None if table is None else Table.from_dict(dict(table))
        # A new scheduler's configuration is a loaded one's, and gives other classes all values, not theirs for ours.
        self.register_to_config(_class_name="EPDScheduler", _use_default_values=[])
        self._start()
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.float32)

    @classmethod
    def from_table(cls, table: Table, config: Mapping[str, Any]) -> EPDScheduler:
        """What `epd.enable` puts in: this table, for the models that the stock scheduler with this config serves.

        Raises:
            ValueError: for a table of another path, or one that starts noisier than a flow can.
        """
        scheduler = cls.from_config(config, rule="table", table=table.to_dict(), unit_variance=False)
        require_fit(table, scheduler.frame)
        return scheduler

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was made, for other processes: a pickle holds its configuration, as rules are functions."""
        return type(self).from_config, (dict(self.config),), {"parallel": self.parallel}

    def __deepcopy__(self, memo: dict[int, Any]) -> EPDScheduler:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied

    @property
    def init_noise_sigma(self) -> float:
        """What unit noise is multiplied with. Reading it tells the scheduler that the pipeline does so: some don't."""
        self._noised = True
        return self._start_scale

    @property
    def _start_scale(self) -> float:
        if self._unit_variance:
            return 1.0
        if self.table is not None:
            first = float(self.table.sigmas[0])
        else:
            first = self.frame.sigma_max if self._layout is None else float(self._layout.levels[0])
        return first * float(self.frame.precondition(torch.tensor(first, dtype=torch.float64))[2])

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The latents are already what the network wants."""
        return sample

    @property
    def wide_call(self) -> WideCall | None:
        """What the next network call needs beside what the pipeline gives it; None when nothing."""
        if self._placement == "bare" or self._layout is None:
            return None
        run = self._upcoming()
        if run.finished:
            return None
        unscaled = self._run is None and self._first_scale != 1.0  # DDPM's and DiT's pipelines pass bare noise
        times, first = self._network_times[run.index], self.calls[run.index].timestep[0]
        if retold := run.call.timestep[0] != first:
            times = torch.tensor(run.call.timestep, dtype=torch.float32, device=times.device)
        if not (run.rows > 1 or run.moves_first_call or unscaled or retold):
            return None
        return WideCall(run.rows, times, first, retold)

    @property
    def question(self) -> Question | None:
        """What the next network call answers, for who makes it cheaper; None before `set_timesteps` and after the last.

        Whoever watches it sees the guided slopes of that call, and says which ones hold.
        """
        self.watched = True
        if self._question is None and self._layout is not None:
            run = self._upcoming()
            if run.finished:
                return None
            call, samples = run.call, None if run.points is None else run.points.shape[1]
            slots, steps = call.slots[: run.rows], self._layout.steps
            sigma = call.sigma[: run.rows]
            self._question = Question(
                self._trajectory, call.step, steps, call.ask, slots, sigma, run.at_state, samples
            )
        return self._question

    @property
    def listener(self) -> Callable[[Any], Any] | None:
        """What has to hear the output of the next network call; None where its guidance is the pipeline's own."""
        if self._placement == "bare" or self._layout is None:
            return None
        run = self._upcoming()
        return None if run.finished or run.call.guidance is None else self._guiding.hear

    def spread(self, rows: Tensor) -> Tensor:
        """The rows of a wide call, R x K sample-major, of the R that the pipeline has, one per sample and copy."""
        run = self._upcoming()
        if run.points is None:
            return rows_of(run.open(self._state(rows)), run.call.c_in, rows.dtype)
        return spread(rows, run.points, run.call.c_in)

    def _upcoming(self) -> PipelineWalk:
        """The run, or the one that the next network call begins."""
        return self._run if self._run is not None else self._required().run(self._begin_index or 0)

    @property
    def steps_done(self) -> int:
        """Solver steps that have ended, counted from the first of the schedule."""
        layout = self._required()
        finished = self._run is not None and self._run.finished
        return layout.steps if finished else 0 if self._run is None else self._run.call.step

    @property
    def at_state(self) -> bool:
        """Whether what was handed out last is a state, and not a point inside a step."""
        return self._run is None or self._run.finished or self._run.call.opens

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: object = None,
        return_dict: bool = True,
    ) -> EPDSchedulerOutput | tuple[Tensor, Tensor]:
        """Takes the network's output at all points of this call and hands out the first point of the next one.

        A pipeline always holds one row per sample, also between the calls of a step, and whenever it is stopped.

        Args:
            model_output: (B x K, *S), sample-major, guided; a learned variance behind it is dropped.
            timestep: one of `timesteps`.
            sample: (B, *S), what was handed out last. Where it was changed since, all points move as far.
            generator: not used: nothing here is random.

        Raises:
            ValueError: before `set_timesteps`, after the last call, or for another number of rows.
        """
        run = self._started(timestep)
        call = run.call
        if run.points is None:
            points = run.open(self._state(sample))
        elif self._handed is not None and sample is self._handed[0] and sample._version == self._handed[1]:
            points = run.points
        else:
            points = moved_points(sample, run.points, call.c_in)
        output = unmarked(model_output)
        if call.guidance is not None:
            factors = torch.tensor(call.guidance[: len(points)], dtype=torch.float64)
            output = self._guiding.scaled(output, factors, points.shape[2])
        denoised, slopes = evaluated(call, points, output)
        question, self._question = self._question, None
        if question is not None and (settled := question.settled(slopes)) is not slopes:
            slopes = settled
            levels = zip(points, slopes, call.sigma, strict=False)
            denoised = torch.stack([x - sigma * d for x, d, sigma in levels])
        after = run.advance(points, slopes)
        rows = rows_of(after[:1], self._last_scale if run.finished else run.call.c_in, sample.dtype)
        self._handed = None if rows.is_inference() or run.finished else (rows, rows._version)
        original = (after if run.finished else denoised).transpose(0, 1).flatten(0, 1).to(sample.dtype)
        if self._one_step and not run.finished:
            original = rows  # asked for one step, PixArt goes on from this and not from the sample
        return EPDSchedulerOutput(rows, original) if return_dict else (rows, original)

    def _required(self) -> Layout:
        if self._layout is None:
            raise ValueError("no timesteps are set: call set_timesteps first")
        return self._layout

    def _started(self, timestep: Tensor | float) -> PipelineWalk:
        layout = self._required()
        if self._run is None:
            if self._begin_index is None:
                self._begin_index = position(timestep, self.timesteps, layout.calls)
            self._run = layout.run(self._begin_index)
        if self._run.finished:
            raise ValueError(
                f"step after the last of {len(layout.calls)} network calls: call set_timesteps before a run"
            )
        return self._run

    def _state(self, latents: Tensor) -> Tensor:
        """The first state, from the pipeline's latents."""
        layout, begin = self._required(), self._begin_index or 0
        # An analytic first call is told another level than that of the start.
        scale = layout.calls[begin].c_in[0] if begin else self._scale_at_start
        return latents.to(torch.promote_types(latents.dtype, torch.float32)) * (self._first_scale / scale)

    @property
    def _first_scale(self) -> float:
        """What the pipeline left to us of `init_noise_sigma`."""
        return 1.0 if self._noised or self._begin_index else self._start_scale

    @property
    def _last_scale(self) -> tuple[float]:
        return (float(self.frame.precondition(self._required().levels[-1])[2]) if self._unit_variance else 1.0,)
