"""The settings of a distillation: every default lives here, once."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..solvers.registry import Schedule, Teacher

Learned = Literal[
    "nodes", "weights", "slope_scale", "sigma_scale", "anchor_scale", "anchor", "memory", "lookahead", "sigmas",
    "guidance_scale", "anchor_guidance",
]  # fmt: skip
GUIDANCE: tuple[Learned, ...] = ("guidance_scale", "anchor_guidance")

MOST_CALLS = 200
MOST_POINTS = 16
SMALL = 4096  # numbers in a sample up to which a backward pass through a whole trajectory is cheap in memory
# Teacher trajectories. A few hold few samples between two modes: tables that fit just these are 3 to 15 % worse
# on others (`digits-exact`, 4,096). Large samples would fill the memory, and Gauss-Newton draws no more.
POOL, LARGE_POOL = 4096, 16384
# What an optimiser takes where the config leaves it open. SOAP and Adam see many small batches: what they must average
# out is a few samples between two modes, and more updates do that better than larger ones.
OPEN: dict[str, dict[str, Any]] = {
    "soap": {"batch": 128, "accumulate": 1, "screening": 200, "validate_every": 100, "lr": 0.02},
    "adam": {"batch": 128, "accumulate": 1, "screening": 200, "validate_every": 100, "lr": 0.04},
    "gauss-newton": {"batch": 2048, "accumulate": 8, "screening": 28, "validate_every": 1, "lr": 0.04},
}


class DistillConfig(BaseModel):
    """How a table is learned from a teacher's trajectories."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    family: Literal["dense", "two-call", "epd", "epd-plugin", "s4s", "ld3", "amed"] = "dense"
    """Which numbers a solver has, and which of them are learned. dense: an analytic first step without a call, then one
    call a step, of one point or several at once; their places and noise levels, free weights of all slopes so far, the
    schedule. two-call: two calls a step, the second of several points at once; weights of the last step's slopes, the
    schedule. epd: the published parallel solver (arXiv 2507.14797), on a fixed schedule; epd-plugin: the same, looking
    ahead along the last three slopes. amed: one point in the second call (arXiv 2312.00094). s4s: one call a step,
    weights of all earlier slopes and the schedule (arXiv 2502.17423). ld3: the schedule alone, for third-order
    multistep steps (arXiv 2405.15506)."""
    calls: int = Field(default=5, ge=1, le=MOST_CALLS)
    """Sequential network calls of one sample: what it costs in time where a call of a few rows costs as much as one."""
    points: Annotated[int, Field(ge=1, le=MOST_POINTS)] | Literal["auto"] = "auto"
    """Rows per sample in the widest call: points of a step that the network sees at once. auto: of family dense 2 where
    the model's calls of twice the rows take hardly longer, else 1, after a few timed calls; of the others 2."""
    step_calls: Literal[1, 2] | None = None
    """Sequential calls of a step: 2 asks at the state, then ahead of it; 1 does both in one call, so that steps are
    twice as many; none: the family's."""
    memory: int | None = Field(default=None, ge=0, le=200)
    """Earlier steps whose slopes are weighed into an update, at no call; none: the family's."""
    afs: bool | None = None
    """Analytic first slope: at the first noise level the network knows no more than x / sqrt(1 + sigma^2), which saves
    a call; none: where the path is variance exploding and the count of calls allows it."""
    learn: tuple[Learned, ...] | None = None
    """What is learned. nodes: where a step's points lie; weights: of their slopes; slope_scale: a factor of each slope;
    sigma_scale: a factor of the noise level that the network gets; anchor: the weight of the slope at the state;
    memory: of earlier slopes; lookahead: the directions to the points; sigmas: the schedule; guidance_scale,
    anchor_guidance: see `learn_guidance`. None: the family's."""
    learn_guidance: bool = False
    """Learn a factor of the guidance scale for every point and state that the network sees, too, between 1/e and e. A
    guided model evaluates both halves anyway, so that it costs nothing (arXiv 2404.07724); the teacher's guidance is
    the model's own. Refused where the model has none."""
    schedule: Schedule | None = None
    """Schedule that training starts from. polynomial: even in sigma^(1/rho) (EDM); logsnr: even in log sigma;
    time_uniform: even in the time of a variance-preserving process; discrete: even in the model's training timesteps;
    flow: even in time, shifted. None: several are tried, the best on held-out noise is trained on."""
    rho: float = Field(default=7.0, gt=0)
    """Exponent of the polynomial schedule."""
    shift: float = Field(default=1.0, gt=0)
    """Shift of the flow schedule."""
    sigma_min: float | None = Field(default=None, gt=0)
    """Smallest noise level, where the solver ends; none: the model's."""
    sigma_max: float | None = Field(default=None, gt=0)
    """Largest noise level, where the solver begins; none: the model's."""
    teacher: Teacher = "exact"
    """exact: the converged ODE, solved to `teacher_tolerance`; or a hand-made rule of its highest order at
    `teacher_multiplier` times the steps."""
    teacher_multiplier: int = Field(default=8, ge=1, le=1000)
    """Teacher steps per student step (a rule as teacher only)."""
    teacher_tolerance: float = Field(default=1e-3, gt=0, lt=1)
    """Tolerance of each step that the converged ODE is solved with (exact teacher only)."""
    objective: Literal["end", "steps", "both"] = "end"
    """What is brought near the teacher. end: the end point, through the whole trajectory; steps: the state after every
    step, each begun from the teacher's (arXiv 2507.14797); both: their sum."""
    relax: float = Field(default=0.0, ge=0)
    """Radius r of the relaxed objective (end point only, by gradients): what is brought near the teacher's end point of
    a noise is solved from wherever it comes nearest within r of that noise, whose length is about the square root of
    its numbers: few numbers cannot fit every noise (arXiv 2405.15506). Takes four times as long; held-out errors, by
    which the best table is kept, are not relaxed. 0: from the noise itself."""
    feature_weight: float = Field(default=0.0, ge=0)
    """Weight of the distance in the features of the network given to `distill`."""
    optimizer: Literal["auto", "soap", "adam", "gauss-newton"] = "auto"
    """SOAP (Adam in the eigenbasis of the gradient's second moment) or Adam through the trajectory, or Gauss-Newton
    (forward evaluations only, no activation is kept; end point objective); auto: SOAP for samples of at most 4,096
    numbers and for networks in half precision, whose differences are rounding, Adam there for tables of more than 1,024
    numbers; Gauss-Newton for larger samples where it applies, and for models without true gradients."""
    iterations: int | None = Field(default=None, ge=1)
    """Optimiser updates after screening; none: 1200 of SOAP and Adam; of Gauss-Newton 6 after several starts, 32 with
    one."""
    screening: int | None = Field(default=None, ge=1)
    """Updates that each start gets, where several are tried; none: 200 of SOAP and Adam, 28 of Gauss-Newton."""
    minutes: float | None = Field(default=None, gt=0)
    """Time for the run, teacher included: makes updates, screening and training alike, fewer or more, so that they fit
    into it at the speed of the first ones; none: as many as the other options say, whatever they take."""
    batch: int | None = Field(default=None, ge=1)
    """Samples per update, over all processes and accumulation parts; none: 128 with SOAP and Adam, 2048 with
    Gauss-Newton, which grows up to it."""
    accumulate: int | None = Field(default=None, ge=1)
    """Parts that a batch is split into, one network batch each; processes share the parts among them; none: 1 with
    SOAP and Adam, 8 with Gauss-Newton."""
    pool: int | None = Field(default=None, ge=1)
    """Teacher trajectories that training draws from; none: 16384 with SOAP and Adam where a sample has at most 4096
    numbers; 4096 else, and where `minutes` are given."""
    validation: int = Field(default=1024, ge=1)
    """Held-out teacher trajectories; the best table on them is kept, or the last one of SOAP or Adam, if not worse
    beyond chance."""
    validate_every: int | None = Field(default=None, ge=1)
    """Updates between two measurements on held-out noise; none: 1 with Gauss-Newton, else 100."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many measurements without improvement; 0: never."""
    lr: float | None = Field(default=None, gt=0)
    """Peak of the one-cycle learning rate of SOAP and Adam; none: 0.02 of SOAP, 0.04 of Adam."""
    clip: float = Field(default=1.4, gt=1)
    """Largest gradient norm, in running root mean squares of it (SOAP, Adam)."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Training seed: batches and starting points. The noise pool is shared between seeds."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states while training."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast of the network. Losses are scaled, so that gradients in fp16 do not underflow."""
    checkpointing: bool = False
    """Recompute network activations in the backward pass (SOAP, Adam), for large networks."""

    def resolved(self, numbers: int) -> ResolvedConfig:
        """This config with the optimiser chosen and everything that its choice decides filled in.

        Args:
            numbers: in one sample; activations of small samples are cheap to keep, so gradients are.
        """
        # Differences of half-precision outputs are noise, so `auto` takes gradients there, whatever the size.
        small = numbers <= SMALL or self.objective != "end" or self.precision != "no" or self.relax > 0
        auto = "soap" if small else "gauss-newton"
        optimizer = auto if self.optimizer == "auto" else self.optimizer
        open_ = OPEN[optimizer]
        many = numbers <= SMALL and optimizer != "gauss-newton" and self.minutes is None
        pool = self.pool or max(LARGE_POOL if many else POOL, self.batch or 1)
        batch = self.batch or min(open_["batch"], pool)
        chosen = {
            "optimizer": optimizer,
            "pool": pool,
            "batch": batch,
            "accumulate": self.accumulate or math.gcd(open_["accumulate"], batch),
            "screening": self.screening or open_["screening"],
            "validate_every": self.validate_every or open_["validate_every"],
            "lr": self.lr or open_["lr"],
        }
        return ResolvedConfig.model_validate({**self.model_dump(), **chosen})

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        if self.batch is not None and self.pool is not None and self.batch > self.pool:
            raise ValueError(f"batch = {self.batch} exceeds pool = {self.pool}: a batch holds distinct trajectories")
        if self.batch is not None and self.accumulate is not None and self.batch % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} must divide batch = {self.batch}")
        if self.optimizer == "gauss-newton" and self.objective != "end":
            raise ValueError(f"optimizer = 'gauss-newton' needs objective = 'end', not {self.objective!r}: use 'soap'")
        if self.relax and (self.optimizer == "gauss-newton" or self.objective != "end"):
            raise ValueError(
                f"relax = {self.relax:g} with optimizer = {self.optimizer!r}, objective = {self.objective!r}: "
                "starts are sought by gradients of the end point: use objective = 'end' with 'soap' or 'adam', or 0"
            )
        if self.optimizer == "gauss-newton" and self.precision != "no":
            raise ValueError(
                f"optimizer = 'gauss-newton' with precision = {self.precision!r}: differences of "
                "half-precision outputs are noise; use 'soap', or precision = 'no'"
            )
        if self.objective != "end" and self.learn is not None and "sigmas" in self.learn:
            raise ValueError(
                f"objective = {self.objective!r} matches states on fixed sigmas: leave 'sigmas' out of learn"
            )
        return self


class ResolvedConfig(DistillConfig):
    """A config in which the optimiser and what depends on it is settled."""

    optimizer: Literal["soap", "adam", "gauss-newton"]  # type: ignore[reportIncompatibleVariableOverride]
    screening: int  # type: ignore[reportIncompatibleVariableOverride]
    pool: int  # type: ignore[reportIncompatibleVariableOverride]
    batch: int  # type: ignore[reportIncompatibleVariableOverride]
    accumulate: int  # type: ignore[reportIncompatibleVariableOverride]
    validate_every: int  # type: ignore[reportIncompatibleVariableOverride]
    lr: float  # type: ignore[reportIncompatibleVariableOverride]
    points: int  # type: ignore[reportIncompatibleVariableOverride]

    @property
    def gauss_newton(self) -> bool:
        """Whether the optimiser is Gauss-Newton rather than by gradients."""
        return self.optimizer == "gauss-newton"
