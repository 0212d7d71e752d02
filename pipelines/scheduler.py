"""EPDScheduler: the solver's rules as a scheduler of diffusers. A pipeline's network calls answer what a rule asks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor

from ..solvers.table import Table
from .calls_in_progress import pipeline_call
from .exchange import EPDSchedulerOutput, WideCall, evaluated, moved_points, noised, position, rows_of, spread
from .frames import Frame, frame_of
from .layout import Asked, Layout, Placement, moved, overruled, require_fit, rule_layout, table_layout
from .placement import placed
from .run import PipelineWalk

RULES = ("euler", "heun", "dpm2", "ipndm", "dpmpp", "table")
FLOW = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler"]


MOVED = (
    "the table's first slope is analytic, but without epd.enable(pipe, table) the first network call cannot be moved "
    "to its look-ahead point: the network is asked for that slope, which is one call more"
)


class EPDScheduler(SchedulerMixin, ConfigMixin):
    r"""A learned table, or a hand-made rule, in any diffusers pipeline.

    `timesteps` has one entry per network call. The pipeline's latents are c_in x, what its network wants: on variance-
    preserving schedules x / sqrt(1 + sigma^2) as with DDIM, on flows x itself. `scale_model_input` is the identity.

    A table owns its sigmas. `num_inference_steps` is then the number of its steps or of its calls; any other number is
    overruled with a warning. `sigmas=` and `timesteps=` are honoured exactly by the hand-made rules (a trailing 0 is
    added, nothing is shifted); with a table they must be the table's own. The points of a fan are evaluated one after
    another; together in one call after `epd.enable(pipe, table)`. Coefficients are float64; the state is kept in
    float32 at least, also where the pipeline's latents are not. Predictions are not clipped (`clip_sample`) or
    thresholded: that would not be the ODE that a table was learned for.

    Args:
        num_train_timesteps ... shift_terminal: as in the stock schedulers, so that `from_config` understands theirs.
        prediction_type: `epsilon`, `v_prediction`, `sample` or `flow_prediction`.
        rule: `euler`, `heun`, `dpm2`, `ipndm`, `dpmpp` or `table`.
        rule_order: of ipndm (1-4, default 4) and dpmpp (1-3, default 2).
        table: `Table.to_dict()`.
        unit_variance: the first latents are unit noise and the last are scaled back, as with DDIM; False is
            x = noise sigma_0 and the result x itself, as `epd.solve` and `EulerDiscreteScheduler` (trailing) do. By
            default True for the hand-made rules on flows and with `leading` spacing, as the stock schedulers have it.

    Reference: arXiv 2507.14797.
    """

    _compatibles = [*(e.name for e in KarrasDiffusionSchedulers), *FLOW]
    order = 1

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
        rule: str = "euler",
        rule_order: int | None = None,
        table: Mapping[str, Any] | None = None,
        unit_variance: bool | None = None,
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule = {rule!r} is unknown: give one of {', '.join(RULES)}")
        if (rule == "table") != (table is not None):
            raise ValueError(
                f"rule = {rule!r} with{'out' * (table is None)} a table: EPDScheduler.from_table sets both"
            )
        self.table = None if table is None else Table.from_dict(dict(table))
        self.placement: Placement = "bare"  # of a loop that is not a pipeline's
        self.parallel = True  # the points of a fan in one call, in pipelines that can
        self.laid_out_in: int | None = None  # number of the pipeline's call that the run belongs to
        self._placement: Placement = "bare"  # of this run
        self.alphas_cumprod = DDIMScheduler(
            num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas,  # type: ignore[arg-type]
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        ).alphas_cumprod  # fmt: skip
        self._said: set[str] = set()
        self._run: PipelineWalk | None = None
        self._begin_index: int | None = None
        self._noised = False
        self.num_inference_steps: int | None = None
        self._layout: Layout | None = None
        self._layouts: dict[Placement, Layout] = {}
        self._handed: tuple[Tensor, int] | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.float32)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,  # noqa: ANN401 - ConfigMixin's signature
    ) -> Any:  # noqa: ANN401
        """From any stock scheduler's configuration, `rule=`, `table=` and the like given beside it."""
        if config is None:
            raise ValueError("config is None: give a scheduler's config")
        # A key that the stock scheduler left at its default is that default, not ours.
        kept: dict[str, Any] = {k: v for k, v in config.items() if k not in ("_use_default_values", "_class_name")}
        if "shift" in kept and "prediction_type" not in kept:  # FlowMatch
            kept["prediction_type"] = "flow_prediction"
        if kwargs.get("rule", "table") != "table":
            kept.pop("table", None)
        return super().from_config(kept, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def from_table(cls, table: Table, config: Mapping[str, Any]) -> EPDScheduler:
        """What `epd.enable` puts in: this table, for the models that the stock scheduler with this config serves.

        Raises:
            ValueError: for a table of another path, or one that starts noisier than a flow can.
        """
        scheduler = cls.from_config(config, rule="table", table=table.to_dict(), unit_variance=False)
        require_fit(table, scheduler.frame)
        return scheduler

    @functools.cached_property
    def frame(self) -> Frame:
        """Path and network parameterisation."""
        return frame_of(self)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

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
        calls = () if self._layout is None else self._layout.calls
        if calls and not 0 <= begin_index < len(calls):
            steps = "" if self.table is None else f": call with num_inference_steps = {self.table.num_steps}"
            raise ValueError(f"begin_index = {begin_index} is beyond the {len(calls)} network calls{steps}")
        self._begin_index = begin_index

    @property
    def init_noise_sigma(self) -> float:
        """What unit noise is multiplied with. Reading it tells the scheduler that the pipeline does so: some don't."""
        self._noised = True
        return self._start_scale

    @property
    def _unit_variance(self) -> bool:
        stated = self.config["unit_variance"]
        by_default = self.frame.path == "flow" or self.config["timestep_spacing"] == "leading"
        return bool(self.table is None and by_default if stated is None else stated)

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
            num_inference_steps: steps of a hand-made rule; with a table its steps or its calls.
            timesteps, sigmas: the caller's own, instead.
            mu: of flows with a dynamic shift; a table needs none.
        """
        own = [None if v is None else [float(s) for s in v] for v in (timesteps, sigmas)]
        asked = Asked(num_inference_steps, own[0], own[1], mu)
        if self.table is None:
            self._layout = rule_layout(self.config, self.frame, asked)
        else:
            self._place()
            if self._placement not in self._layouts:  # a table is the same in every run
                self._layouts[self._placement] = table_layout(self.table, self.frame, self._placement)
            self._layout = self._layouts[self._placement]
            self._say(overruled(self._layout, asked))
            if self._placement == "bare" and moved(self.table):
                self._say(MOVED)
        steps, calls = self._layout.steps, self._layout.calls
        self.order = self._layout.order if num_inference_steps == steps else 1
        self.num_inference_steps = steps
        self._told = [torch.tensor(c.timestep, dtype=torch.float32, device=device) for c in calls]
        self.timesteps = torch.tensor([c.timestep[0] for c in calls], dtype=torch.float32, device=device)
        ends = [*(c.sigma[0] for c in calls), float(self._layout.levels[-1])]
        self.sigmas = torch.tensor(ends, dtype=torch.float32)
        self._run, self._handed, self._begin_index, self._noised = None, None, None, False

    def _place(self) -> None:
        """Where the points of this run are evaluated: the pipeline that runs decides, not the one that was enabled."""
        call = pipeline_call()
        mine = call is not None and vars(call.pipe).get("scheduler") is self
        self.laid_out_in = call.number if call is not None and mine else None
        self._placement = self.placement
        if call is not None:  # a pipeline that steps by a copy of its scheduler has states that no hook knows
            self._placement, note = placed(call.pipe, self.parallel) if mine else ("bare", "")
            self._say(note if self._placement == "serial" else "")

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins a run of its own: one that is under way cannot be copied, nor continued by two."""
        return {**vars(self), "_run": None, "_handed": None, "laid_out_in": None}

    def _say(self, text: str) -> None:
        if text and self.first_time(text):
            warnings.warn(text, stacklevel=3)

    def first_time(self, text: str) -> bool:
        """Whether this is said for the first time; every warning is given once per scheduler."""
        new = text not in self._said
        self._said.add(text)
        return new

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The latents at these timesteps, (1,) or (B,), of clean ones: alpha x0 + sigma eps in the pipeline's frame."""
        self._noised = True
        if self._layout is not None and self._run is None and self._begin_index is None:
            # Some image-to-image pipelines never say where they begin, but all make their first latents here.
            begin = position(timesteps.flatten()[:1].cpu(), self.timesteps, self._layout.calls)
            if abs(self._layout.calls[begin].timestep[0] - float(timesteps.flatten()[0])) < 1e-3:
                self._begin_index = begin
        return noised(self.frame, original_samples, noise, timesteps)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name and the argument order that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    @property
    def wide_call(self) -> WideCall | None:
        """What the next network call needs beside what the pipeline gives it; None when nothing."""
        if self._placement == "bare" or self._layout is None:
            return None
        run = self._run if self._run is not None else self._layout.run(self._begin_index or 0)
        unscaled = self._run is None and self._first_scale != 1.0  # DDPM's and DiT's pipelines pass bare noise
        if run.finished or not (run.rows > 1 or run.ahead or unscaled):
            return None
        return WideCall(run.rows, self._told[run.index], run.call.timestep[0])

    def spread(self, rows: Tensor) -> Tensor:
        """The rows of a wide call, R x K sample-major, of the R that the pipeline has, one per sample and copy."""
        if self._run is None or self._run.points is None:
            run = self._required().run(self._begin_index or 0)
            return rows_of(run.open(self._state(rows)), run.call.c_in, rows.dtype)
        return spread(rows, self._run.points, self._run.call.c_in)

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
        denoised, slopes = evaluated(call, points, model_output)
        after = run.advance(points, slopes)
        rows = rows_of(after[:1], self._last_scale if run.finished else run.call.c_in, sample.dtype)
        self._handed = None if rows.is_inference() or run.finished else (rows, rows._version)
        original = denoised.transpose(0, 1).flatten(0, 1).to(sample.dtype)
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
        at_start = float(self.frame.precondition(layout.levels[0])[2])  # an analytic first call is told another level
        scale = layout.calls[begin].c_in[0] if begin else at_start
        return latents.to(torch.promote_types(latents.dtype, torch.float32)) * (self._first_scale / scale)

    @property
    def _first_scale(self) -> float:
        """What the pipeline left to us of `init_noise_sigma`."""
        return 1.0 if self._noised or self._begin_index else self._start_scale

    @property
    def _last_scale(self) -> tuple[float]:
        return (float(self.frame.precondition(self._required().levels[-1])[2]) if self._unit_variance else 1.0,)
