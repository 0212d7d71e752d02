"""What a distillation is told: every default lives here, once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Learned = Literal["nodes", "weights", "slope_scale", "sigma_scale", "anchor", "memory", "lookahead", "sigmas"]


class DistillConfig(BaseModel):
    """How a table is learned from a teacher's trajectories."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["default", "epd", "epd-plugin", "s4s", "ld3", "amed"] = "default"
    """Which numbers exist and are learned: `epd --help` of the families is in the README."""
    calls: int = Field(default=5, ge=1, le=200)
    """Sequential network calls of one sample."""
    points: int = Field(default=2, ge=1, le=16)
    """K, rows per sample in the widest call."""
    step_calls: Literal[1, 2] | None = None
    """Sequential calls of a step; none: the family's."""
    memory: int | None = Field(default=None, ge=0, le=200)
    """How many earlier steps' slopes are remembered; none: the family's."""
    afs: bool | None = None
    """Analytic first slope; none: where the path is variance exploding and the count of calls allows it."""
    learn: tuple[Learned, ...] | None = None
    """What is learned; none: the family's."""
    schedule: Literal["polynomial", "logsnr", "time_uniform", "discrete", "flow"] | None = None
    """Where the sigmas start; none: several are tried, the best on held-out noise is trained on."""
    rho: float = Field(default=7.0, gt=0)
    """Exponent of the polynomial schedule."""
    shift: float = Field(default=1.0, gt=0)
    """Shift of the flow schedule."""
    sigma_min: float | None = Field(default=None, gt=0)
    """Last sigma; none: the model's."""
    sigma_max: float | None = Field(default=None, gt=0)
    """First sigma; none: the model's."""
    teacher: Literal["exact", "heun", "dpm2", "ipndm", "dpmpp", "euler"] = "exact"
    """The converged ODE, or a rule at `teacher_multiplier` times the steps."""
    teacher_multiplier: int = Field(default=8, ge=1, le=1000)
    """Teacher steps per student step (a rule as teacher only)."""
    teacher_tolerance: float = Field(default=1e-4, gt=0, lt=1)
    """Of one step of the converged ODE (exact teacher only)."""
    objective: Literal["end", "steps", "both"] = "end"
    """End point through the whole trajectory, the paper's per-step matching, or their sum."""
    feature_weight: float = Field(default=0.0, ge=0)
    """Weight of the distance in the features of the network given to `distill`."""
    optimizer: Literal["auto", "gauss-newton", "adam"] = "auto"
    """Gauss-Newton (forward evaluations only; end point objective) or Adam through the trajectory; auto: the first
    where it applies."""
    iterations: int | None = Field(default=None, ge=1)
    """Optimiser updates after screening; none: 1000 of Adam; of Gauss-Newton 6 after
    several starts, 32 with one."""
    screening: int = Field(default=28, ge=1)
    """Updates that each start gets, where several are tried."""
    batch: int = Field(default=2048, ge=1)
    """Samples per update, over all processes and accumulation parts; Gauss-Newton grows up to it."""
    accumulate: int = Field(default=8, ge=1)
    """Parts that a batch is split into, one network batch each; processes share the parts among them."""
    pool: int = Field(default=4096, ge=1)
    """Teacher trajectories that training draws from."""
    validation: int = Field(default=512, ge=1)
    """Held-out teacher trajectories; the best table on them is kept."""
    validate_every: int | None = Field(default=None, ge=1)
    """Updates between two measurements on held-out noise; none: 1 with Gauss-Newton, 25 with Adam."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many measurements without improvement; 0: never."""
    lr: float = Field(default=0.05, gt=0)
    """Peak of Adam's one-cycle learning rate."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm (Adam)."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Training seed: batches and starting points. The noise pool is shared between seeds."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the state while training."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast of the network."""
    checkpointing: bool = False
    """Recompute network activations in the backward pass (Adam), for large networks."""

    @property
    def gauss_newton(self) -> bool:
        """Which optimiser `auto` means: differences of half-precision outputs are noise."""
        if self.optimizer == "auto":
            return self.objective == "end" and self.precision == "no"
        return self.optimizer == "gauss-newton"

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        if self.batch > self.pool:
            raise ValueError(f"batch = {self.batch} exceeds pool = {self.pool}: a batch holds distinct trajectories")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} must divide batch = {self.batch}")
        if self.optimizer == "gauss-newton" and self.objective != "end":
            raise ValueError(f"optimizer = 'gauss-newton' needs objective = 'end', not {self.objective!r}: use 'adam'")
        if self.optimizer == "gauss-newton" and self.precision != "no":
            raise ValueError(
                f"optimizer = 'gauss-newton' with precision = {self.precision!r}: differences of "
                "half-precision outputs are noise; use 'adam', or precision = 'no'"
            )
        if self.objective != "end" and self.learn is not None and "sigmas" in self.learn:
            raise ValueError(
                f"objective = {self.objective!r} matches states on fixed sigmas: leave 'sigmas' out of learn"
            )
        return self
