"""The settings of learning inner-loop feedback: every default lives here, once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..solvers.registry import SCHEDULES, USUAL, Schedule, Teacher
from .config import MOST_CALLS, SMALL, DistillConfig


class FeedbackConfig(BaseModel):
    """How a feedback block and its scales are learned from a teacher's trajectories."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(default=4, ge=1, le=MOST_CALLS)
    """Solver steps, each of one network call."""
    feedback: tuple[int, ...] = ()
    """Steps with feedback, from 0; none given: all."""
    begin: int | None = Field(default=None, ge=0)
    """First block of the loop; none: 8 of 28, in this proportion."""
    count: int | None = Field(default=None, ge=1)
    """Blocks of the loop, L, of D: a call with feedback evaluates D + L + 1; none: 12 of 28, in this proportion."""
    start: Literal["copy", "random"] = "copy"
    """What the feedback block begins with: copy of the loop's first block, or random weights."""
    schedule: Schedule | None = None
    """Noise levels of the solver; none: polynomial, or flow on a flow path."""
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
    `teacher_multiplier` times the steps. It is always the network without feedback."""
    teacher_multiplier: int = Field(default=8, ge=1, le=1000)
    """Teacher steps per step (a rule as teacher only)."""
    teacher_tolerance: float = Field(default=1e-3, gt=0, lt=1)
    """Tolerance of each step that the converged ODE is solved with (exact teacher only)."""
    objective: Literal["auto", "end", "steps"] = "auto"
    """What is brought near the teacher. end: the end point, through the whole trajectory, whose activations are kept;
    steps: the mean slope of a step begun from the teacher's state, a random one for each sample; auto: end for samples
    of at most 4,096 numbers."""
    iterations: int = Field(default=2000, ge=1)
    """Adam's updates."""
    batch: int = Field(default=64, ge=1)
    """Samples per update."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a batch is split into, one network batch each; processes share the parts among them."""
    pool: int = Field(default=4096, ge=1)
    """Teacher trajectories that training draws from."""
    validation: int = Field(default=512, ge=1)
    """Held-out teacher trajectories; what is best on them is kept."""
    validate_every: int = Field(default=100, ge=1)
    """Updates between two measurements on held-out noise."""
    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate of the feedback block."""
    scale_lr: float = Field(default=1e-2, gt=0)
    """Peak learning rate of the scales, which begin at 0; nothing decays them."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Training seed: batches and random weights. The noise pool is shared between seeds."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states while training."""

    @model_validator(mode="after")
    def _consistent(self) -> FeedbackConfig:
        if self.batch > self.pool:
            raise ValueError(f"batch = {self.batch} exceeds pool = {self.pool}: a batch holds distinct trajectories")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} must divide batch = {self.batch}")
        if any(not 0 <= n < self.steps for n in self.feedback):
            told = f"feedback = {list(self.feedback)}"
            raise ValueError(f"{told}: give steps from 0 to {self.steps - 1}, or none for all")
        return self

    def through(self, numbers: int) -> bool:
        """Whether the objective is the end point, for samples of so many numbers."""
        return self.objective == "end" or (self.objective == "auto" and numbers <= SMALL)

    def of_schedule(self, path: Literal["ve", "flow"]) -> tuple[str, float | None]:
        """The schedule's name and its number."""
        name = self.schedule or USUAL[path]
        row = SCHEDULES[name]
        return name, {"rho": self.rho, "shift": self.shift}.get(row.shape or "", row.number)

    def for_teacher(self) -> DistillConfig:
        """What a `Teacher` reads."""
        return DistillConfig(
            teacher=self.teacher, teacher_multiplier=self.teacher_multiplier, rho=self.rho, dtype=self.dtype,
            teacher_tolerance=self.teacher_tolerance, pool=self.pool, validation=self.validation,
        )  # fmt: skip
