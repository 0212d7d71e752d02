"""The options that say which model, and which solver: several commands have them."""

from __future__ import annotations

from pydantic import Field

from ..pipelines.options import FROZEN, ModelOptions, UserPath
from ..solvers.registry import NumberedRule, Schedule
from .command_options import CommandOptions


class UsageError(ValueError):
    """Options that exclude or need each other: exit code 2."""


class ModelArguments(ModelOptions, CommandOptions):
    """Which model, and how it is loaded, conditioned and placed."""

    model_config = FROZEN

    config: UserPath | None = None
    """YAML file with any of these options by name; what the command line says wins."""
    model: str = "digits"
    """digits, digits-exact, digits-exact-flow, shapes, shapes-exact, shapes-32, a diffusers pipeline's folder, its hub
    id, or a function that returns your own model: file.py:function or package.module:function, called with the model
    options that are given."""
    rows: int | None = Field(default=None, ge=1)
    """Most rows of one network call; larger calls are split, which changes rounding only. None: on CUDA measured by one
    call and the free memory, elsewhere as many as hold 4 million numbers."""


class SolverArguments(ModelArguments):
    """Which solver: a learned one, or a hand-made one on a schedule."""

    model_config = FROZEN

    table: str | None = None
    """Learned solver: a file, a run's folder, a published name, or a hub id. Exactly one of --table and --rule."""
    rule: NumberedRule | None = None
    """Hand-made solver."""
    calls: int = Field(default=10, ge=1)
    """Sequential network calls of --rule."""
    schedule: Schedule | None = None
    """Noise schedule of --rule; none: polynomial, or flow on a flow path."""
    rho: float = Field(default=7.0, gt=0)
    """Exponent of the polynomial schedule of --rule; larger: smaller steps near the data."""
    shift: float = Field(default=1.0, gt=0)
    """Shift of the flow schedule of --rule; 1: none."""
    afs: bool = False
    """Analytic first slope for --rule: one call fewer."""
