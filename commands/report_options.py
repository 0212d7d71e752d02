"""The options of `epd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from ..pipelines.options import FROZEN, UserPath
from .model_arguments import ModelArguments


class Report(ModelArguments):
    """Write one self-contained HTML page of runs: verdict, error against cost, the table, trajectories, samples,
    config, commands.

    What a run lacks is left out, with the command that makes it.
    """

    model_config = FROZEN

    runs: Annotated[tuple[UserPath, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = Field(min_length=1)
    """Folders of epd distill, refine, tune or compare. A run without a comparison of its own takes that of a folder of
    epd compare among them."""
    model: str | None = None  # type: ignore[reportIncompatibleVariableOverride] - a run may know its own
    """Model of the trajectories and samples, as in all commands; none: the embedded model that a run names, or no
    pictures."""
    out: UserPath = Path("report.html")
    """The page; one that is there is replaced."""
    samples: int = Field(default=32, ge=0)
    """Samples whose trajectories are followed for the figures, at some 250 evaluations each; fewer than 2: none."""
    gallery: str = "0-7"
    """Seeds that all solvers draw: 0-7, or 1,2,3. The trajectories of the first two are shown."""
    tolerance: float = Field(default=1e-5, gt=0)
    """Relative and absolute tolerance of the converged trajectories and samples."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states."""
