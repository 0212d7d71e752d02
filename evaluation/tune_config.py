"""The settings of tuning: every default lives here, once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..distill.config import MOST_CALLS, MOST_POINTS


class TuneConfig(BaseModel):
    """A budget, exactly one of three, and what is tried within it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    latency_ms: float | None = Field(default=None, gt=0)
    """Milliseconds that a request may take on this machine: the sampler alone, without text encoders and decoder."""
    calls: int | None = Field(default=None, ge=2, le=MOST_CALLS)
    """Sequential network calls that a request may take."""
    quality: float | None = Field(default=None, gt=0)
    """RMSE to the converged end point on held-out noise that is to be reached, as fast as possible."""
    request: int = Field(default=1, ge=1)
    """Samples that are drawn at once."""
    points: tuple[int, ...] = (1, 2, 3, 4)
    """Points of a call that are tried, where they pay."""
    most_calls: int = Field(default=16, ge=2, le=MOST_CALLS)
    """Calls up to which a quality is looked for, and the most that are learned within a latency."""
    minutes: float = Field(default=10.0, gt=0)
    """Time for all training together, teachers included."""
    samples: int = Field(default=1024, ge=2)
    """Fresh samples on which the result is held against hand-made solvers; none of them decides anything else."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Training seed."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states."""

    @model_validator(mode="after")
    def _consistent(self) -> TuneConfig:
        given = [name for name in ("latency_ms", "calls", "quality") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"budget: {' and '.join(given) or 'missing'}; give one of latency_ms, calls, quality")
        if not self.points or not all(1 <= k <= MOST_POINTS for k in self.points):
            raise ValueError(f"points = {list(self.points)} must be some numbers from 1 to {MOST_POINTS}")
        return self
