"""The options of `epd table show | convert | diff`."""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import Field

from ..pipelines.options import FROZEN, UserPath
from ..solvers.registry import PublishedSchedule
from .command_options import CommandOptions


class TableShow(CommandOptions):
    """Print a table: per step sigma, nodes, weights, anchor and memory; order, cost, provenance."""

    model_config = FROZEN

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Table: a file, a run's folder, a published name, or a hub id."""


class TableConvert(CommandOptions):
    """Turn a published .pkl or .npz table into our JSON; nothing in the file is executed."""

    model_config = FROZEN

    source: Annotated[UserPath, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The published file."""
    target: Annotated[UserPath, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The JSON to write."""
    sigmas: tuple[float, ...] = ()
    """Noise levels, one more than steps; none: rebuilt from what the file says of its schedule and model."""
    schedule: PublishedSchedule | None = None
    """Schedule to rebuild the noise levels from; none: the file's."""
    sigma_min: float | None = Field(default=None, gt=0)
    """Smallest noise level of the schedule; none: what the file or its model says."""
    sigma_max: float | None = Field(default=None, gt=0)
    """Largest noise level of the schedule; none: what the file or its model says."""
    rho: float | None = Field(default=None, gt=0)
    """Exponent of the schedule; none: the file's, or 7."""
    shift: float | None = Field(default=None, gt=0)
    """Shift of a flow schedule; none: the file's, or 1."""
    mu: float | None = None
    """Logarithm of the shift of a flow schedule; goes before --shift."""


class TableDiff(CommandOptions):
    """Say where two tables differ; exit code 0 when their numbers are equal, 1 when not."""

    model_config = FROZEN

    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
    """Table: a file, a run's folder, a published name, or a hub id."""
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
    """The other table, likewise."""
