"""What each command is told: options, their defaults and their help; the same names are the keys of a YAML config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..distill.config import DistillConfig

FROZEN = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
Rule = Literal["euler", "heun", "dpm2", "ipndm1", "ipndm2", "ipndm3", "ipndm4", "dpmpp1", "dpmpp2", "dpmpp3"]
Schedule = Literal["polynomial", "logsnr", "time_uniform", "flow"]


class UsageError(ValueError):
    """Options that exclude or need each other: exit code 2."""


def mapping(value: object) -> dict[str, Any]:
    """A mapping with names as keys.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise ValueError('needed a mapping of names to values, such as {"clean_caption": false}')


def json_mapping(words: list[str]) -> dict[str, Any]:
    """What --options says."""
    try:
        value = json.loads(words[0])
    except (ValueError, RecursionError) as error:
        text = 'needed a mapping as JSON, such as \'{"clean_caption": false}\''
        raise ValueError(f"{text}; {words[0]!r} is not: {error}") from error
    return mapping(value)


JSON_MAPPING = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=json_mapping,
    is_instance=lambda value: isinstance(value, dict) or value is None,
    str_from_instance=lambda value: [json.dumps(value)],
)


class ModelArguments(BaseModel):
    """Which model, and how it is conditioned and placed."""

    model_config = FROZEN

    config: Path | None = None
    """YAML file with any of these options by name; what the command line says wins."""
    model: str = "digits"
    """digits, digits-exact, digits-exact-flow, a diffusers pipeline's folder, or its hub id."""
    prompts: Path | None = None
    """File with one prompt a line; sample number s has prompt number s mod their count."""
    prompt: tuple[str, ...] = ()
    """Prompts given directly."""
    negative_prompt: str | None = None
    """What guidance leads away from."""
    labels: tuple[int, ...] = ()
    """Classes, dealt out to samples like prompts; `digits` deals out 0 to 9 without."""
    guidance: float | None = None
    """Guidance scale; none: the model's own."""
    height: int | None = Field(default=None, ge=1)
    """Picture height in pixels; none: the model's own."""
    width: int | None = Field(default=None, ge=1)
    """Picture width in pixels; none: the model's own."""
    resolution: int | None = Field(default=None, ge=1)
    """Height and width in one."""
    num_frames: int | None = Field(default=None, ge=1)
    """Frames of a video model."""
    options: Annotated[dict[str, Any] | None, JSON_MAPPING] = None
    """Further arguments of the pipeline's call, the same for every sample: {"max_sequence_length": 128}."""
    network_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """The network's own; none: as it was saved."""
    variant: str | None = None
    """Of the weight files, such as fp16."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; none: CUDA where there is one."""
    device_map: str | None = None
    """Spread a pipeline's parts over devices, such as balanced."""
    offload: Literal["none", "model", "sequential", "group"] = "none"
    """What waits on the CPU while it is not needed."""

    @field_validator("options", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return None if value is None else mapping(value)


class Distill(DistillConfig, ModelArguments):
    """Learn a solver for a frozen model; leaves solver.json, TensorBoard logs (tb/) and a checkpoint in --out.

    Ctrl-C or a crash leaves a run that --resume continues bit for bit.
    """

    model_config = FROZEN

    out: Path = Path("runs/distill")
    """Folder of the run."""
    resume: bool = False
    """Continue the run in --out."""
    dry_run: bool = False
    """Print the plan and what it costs, and stop."""
    init: str | None = None
    """Table to start from: a file, or the name of a published one."""

    def distill_config(self) -> DistillConfig:
        """The part that says how to learn."""
        return DistillConfig(**{name: getattr(self, name) for name in DistillConfig.model_fields})


class Sample(ModelArguments):
    """Draw samples with a learned table or a hand-made rule; leaves samples.npz, grid.png and samples.json in --out."""

    out: Path = Path("runs/sample")
    """Folder of the result; what it holds is replaced."""
    table: str | None = None
    """Learned solver: a file, or the name of a published one. Exactly one of --table and --rule."""
    rule: Rule | None = None
    """Hand-made solver."""
    calls: int = Field(default=10, ge=1)
    """Sequential network calls of --rule."""
    schedule: Schedule | None = None
    """Of --rule; none: polynomial, or flow on a flow path."""
    rho: float = Field(default=7.0, gt=0)
    """Exponent of the polynomial schedule."""
    shift: float = Field(default=1.0, gt=0)
    """Shift of the flow schedule."""
    afs: bool = False
    """Analytic first slope for --rule: one call fewer."""
    count: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = Field(default=None, ge=1)
    """How many samples, seeds 0, 1, 2, ...; none: as many as --seeds, or 64."""
    seeds: str | None = None
    """Which samples: 0-99, or 1,2,3, or both mixed. A sample is its seed, whatever the batch."""
    batch: int = Field(default=256, ge=1)
    """Samples per network batch."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the state."""
    columns: int = Field(default=16, ge=1)
    """Pictures in a row of the grid."""
    grid: int = Field(default=256, ge=0)
    """How many of the pictures go into the grid; 0: no grid."""
    states: bool = False
    """Keep the finished states, too, not only the 8-bit pictures."""


class Compare(ModelArguments):
    """Hold tables against every hand-made solver on its best schedule.

    Leaves a Markdown table, JSON and plots in --out. Ctrl-C or a crash cost one cell: the same command again goes on
    from what is kept in --out/cells, where comparisons under other options lie beside it.
    """

    out: Path = Path("runs/compare")
    """Folder of the result."""
    tables: tuple[str, ...] = ()
    """Learned solvers: files, or names of published ones."""
    calls: tuple[int, ...] = (3, 5, 7, 9)
    """Sequential network calls to compare at."""
    solvers: tuple[str, ...] = ()
    """Only these hand-made solvers, by name or group; none: all."""
    samples: int = Field(default=2048, ge=2)
    """Fresh samples that are measured."""
    batch: int = Field(default=512, ge=1)
    """Samples per network batch."""
    seed: int = Field(default=0, ge=0)
    """Where the samples' seeds start."""
    tolerance: float = Field(default=1e-5, gt=0)
    """Of the converged end points; a float32 network supports 1e-5."""
    dtype: Literal["float32", "float64"] = "float64"
    """Of the state."""


class TableShow(BaseModel):
    """Print a table: per step sigma, nodes, weights, anchor and memory; order, cost, provenance."""

    model_config = FROZEN

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Table file, or the name of a published one."""


class TableConvert(BaseModel):
    """Turn a published .pkl or .npz table into our JSON; nothing in the file is executed."""

    model_config = FROZEN

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The published file."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The JSON to write."""
    sigmas: tuple[float, ...] = ()
    """Noise levels, one more than steps; none: rebuilt from what the file says of its schedule and model."""
    schedule: Literal["polynomial", "logsnr", "time_uniform", "discrete", "flowmatch"] | None = None
    """Rebuild them from this schedule instead."""
    sigma_min: float | None = Field(default=None, gt=0)
    """Where the schedule ends."""
    sigma_max: float | None = Field(default=None, gt=0)
    """Where it starts."""
    rho: float | None = Field(default=None, gt=0)
    """Its exponent."""
    shift: float | None = Field(default=None, gt=0)
    """Shift of a flow schedule."""
    mu: float | None = None
    """Shift e^mu of a flow schedule."""


class TableDiff(BaseModel):
    """Say where two tables differ; exit code 0 when their numbers are equal, 1 when not."""

    model_config = FROZEN

    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
    """Table file, or the name of a published one."""
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
    """The other one."""


class Doctor(BaseModel):
    """Check this machine: versions, devices, the torchvision trap, disk; a verdict and a remedy on each line."""

    model_config = FROZEN

    out: Path = Path("runs")
    """Where runs will be written."""
