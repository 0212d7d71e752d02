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
    calls: int = Field(5, ge=1, le=200)
    """Sequential network calls of one sample."""
    points: int = Field(2, ge=1, le=16)
    """K, rows per sample in the widest call."""
    step_calls: Literal[1, 2] | None = None
    """Sequential calls of a step; none: the family's."""
    memory: int | None = Field(None, ge=0, le=200)
    """How many earlier steps' slopes are remembered; none: the family's."""
    afs: bool | None = None
    """Analytic first slope; none: where the path is variance exploding and the count of calls allows it."""
    learn: tuple[Learned, ...] | None = None
    """What is learned; none: the family's."""
    schedule: Literal["polynomial", "logsnr", "time_uniform", "flow"] | None = None
    """Where the sigmas start; none: polynomial, or flow on a flow path."""
    rho: float = Field(7.0, gt=0)
    """Exponent of the polynomial schedule."""
    shift: float = Field(1.0, gt=0)
    """Shift of the flow schedule."""
    sigma_min: float | None = Field(None, gt=0)
    """Last sigma; none: the model's."""
    sigma_max: float | None = Field(None, gt=0)
    """First sigma; none: the model's."""
    teacher: Literal["exact", "heun", "dpm2", "ipndm", "dpmpp", "euler"] = "exact"
    """The converged ODE, or a rule at `teacher_multiplier` times the steps."""
    teacher_multiplier: int = Field(8, ge=1, le=1000)
    """Teacher steps per student step (a rule as teacher only)."""
    objective: Literal["end", "steps", "both"] = "end"
    """End point through the whole trajectory, the paper's per-step matching, or their sum."""
    feature_weight: float = Field(0.0, ge=0)
    """Weight of the distance in the features of the network given to `distill`."""
    iterations: int = Field(1000, ge=1)
    """Optimiser updates."""
    batch: int = Field(256, ge=1)
    """Samples per update, over all processes and accumulation parts."""
    accumulate: int = Field(1, ge=1)
    """Parts that an update's batch is split into, to save memory."""
    pool: int = Field(8192, ge=1)
    """Teacher trajectories that training draws from."""
    validation: int = Field(512, ge=1)
    """Held-out teacher trajectories; the best table on them is kept."""
    validate_every: int = Field(50, ge=1)
    """Updates between two measurements on held-out noise."""
    patience: int = Field(0, ge=0)
    """Stop after this many measurements without improvement; 0: never."""
    restarts: int = Field(1, ge=1, le=64)
    """Initialisations that are tried; the best on held-out noise is trained to the end."""
    lr: float = Field(0.05, gt=0)
    """Peak of the one-cycle learning rate."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Training seed: noise, batches, initialisation."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast of the network."""
    checkpointing: bool = False
    """Recompute network activations in the backward pass, for large networks."""

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        if self.batch > self.pool:
            raise ValueError(f"batch = {self.batch} exceeds pool = {self.pool}: a batch holds distinct trajectories")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} must divide batch = {self.batch}")
        return self
