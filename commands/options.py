"""The options of each command, their defaults and their help; the same names are the keys of a YAML config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro
from pydantic import Field, field_validator

from ..distill.config import MOST_CALLS, MOST_POINTS, DistillConfig
from ..evaluation.tune_config import TuneConfig
from ..pipelines.options import FROZEN, UserFolder, UserPath
from ..rl.config import RefineConfig
from .acceleration_options import RefineAcceleration  # noqa: F401 - as below
from .command_options import CommandOptions
from .feedback_options import DistillFeedback  # noqa: F401 - as below
from .model_arguments import ModelArguments, SolverArguments, UsageError  # noqa: F401 - as below
from .report_options import Report  # noqa: F401 - as below
from .table_options import TableConvert, TableDiff, TableShow  # noqa: F401 - the command looks here for all options

Answer: TypeAlias = Literal["batched", "serial", "auto"]


def _several(value: str, most: int, what: str, example: str) -> str:
    """Numbers with commas between them, in rising order."""
    numbers = [int(part) if part.isdecimal() else 0 for part in value.replace(" ", "").split(",")]
    if not all(1 <= number <= most for number in numbers):
        raise ValueError(f"must be {what} from 1 to {most}, or several, as in {example}")
    return ",".join(map(str, sorted(set(numbers))))


class Distill(DistillConfig, ModelArguments):
    """Learn a solver for a frozen model; leaves solver.json, TensorBoard logs (tb/) and a checkpoint in --out.

    Ctrl-C or a crash leaves a run that --resume continues bit for bit.
    """

    model_config = FROZEN

    calls: str = "5"  # type: ignore[reportIncompatibleVariableOverride] - one count or several
    """Sequential network calls of one sample: what it costs in time where a call of a few rows costs as much as one.
    Several, as in 3,5,7,9, are learned one after another, in --out/3-calls and so on: they share the teacher, and each
    solver is grown into a start of the next, so that more calls are never worse."""
    points: str = "auto"  # type: ignore[reportIncompatibleVariableOverride] - auto, one number or several
    """Rows per sample in the widest call: points of a step that the network sees at once. auto: of family dense 2 where
    the model's calls of twice the rows take hardly longer, else 1, after a few timed calls; of the others 2. Several,
    as in 1,2,3, are learned one after another, in --out/1-points and so on, from the same teacher."""
    out: UserFolder = Path("runs/distill")
    """Folder of the run."""
    resume: bool = False
    """Continue the run in --out."""
    inspect: int | None = Field(default=None, ge=0)
    """Samples whose trajectories are followed at the end beside the converged ones, for TensorBoard (as epd inspect
    does), at some 250 evaluations each; 0: none. None: 16 where the teacher is exact, so that the
    model is known to have converged trajectories, else 0."""
    dry_run: bool = False
    """Print the plan, what it costs and what training keeps in memory, and stop."""
    init: str | None = None
    """Table to start from: a file, a run's folder, the name of a published one, or a hub id. One of fewer calls is
    grown."""

    @field_validator("calls", "points", mode="before")
    @classmethod
    def _text(cls, value: object) -> str:
        """YAML has a number or a list."""
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    @field_validator("calls")
    @classmethod
    def _counts(cls, value: str) -> str:
        return _several(value, MOST_CALLS, "a number", "3,5,7,9")

    @field_validator("points")
    @classmethod
    def _numbers(cls, value: str) -> str:
        return value if value == "auto" else _several(value, MOST_POINTS, "auto, a number", "1,2,3")

    @property
    def counts(self) -> tuple[int, ...]:
        """The counts of calls, fewest first."""
        return tuple(map(int, self.calls.split(",")))

    @property
    def numbers(self) -> tuple[int | Literal["auto"], ...]:
        """The numbers of points, fewest first."""
        return ("auto",) if self.points == "auto" else tuple(map(int, self.points.split(",")))

    def distill_config(self) -> DistillConfig:
        """The part that says how to learn, for the fewest calls and points."""
        values = {name: getattr(self, name) for name in DistillConfig.model_fields}
        return DistillConfig(**{**values, "calls": self.counts[0], "points": self.numbers[0]})


class Refine(RefineConfig, ModelArguments):
    """Refine a learned solver by rewards (RDPO); leaves solver.json, TensorBoard logs (tb/) and a checkpoint in --out.

    The result is never worse than --table as far as held-out samples can tell: solver.json is the best table that was
    better beyond doubt, or --table itself. Ctrl-C or a crash leaves a run that --resume continues bit for bit.
    """

    model_config = FROZEN

    table: str | None = None
    """Learned solver to refine: a file, a run's folder, a published name, or a hub id."""
    starts: tuple[str, ...] = ()
    """Other learned solvers that the policy may start at, with --start best: such as one refined for fewer calls, which
    is grown."""
    reward: tuple[str, ...] = ()
    """What pictures are rewarded by, one or several: shapes-all, shapes-frac, shapes-graded (the embedded world);
    clip-score:CLIP, pick-score:CLIP, aesthetic:CLIP,HEAD, hps:FOLDER, image-reward:FOLDER (local folders or hub ids);
    command:COMMAND LINE (gets PNGs and prompts as JSON, answers scores); file.py:function or package.module:function,
    which takes pictures (B, 3, H, W) in [0, 1] and prompts and returns (B,); closeness (minus the distance to the
    converged end of the ODE)."""
    weights: tuple[float, ...] = ()
    """Of each reward, which are measured in standard deviations of the given table's; none: 1."""
    watch: tuple[str, ...] = ()
    """Rewards that are recorded on held-out samples without being learned from, to see whether others are hacked."""
    held_out_prompts: UserPath | None = None
    """File with prompts that tables are tested on and never trained on; none: every fifth of ten prompts or more."""
    out: UserFolder = Path("runs/refine")
    """Folder of the run."""
    resume: bool = False
    """Continue the run in --out."""
    inspect: int | None = Field(default=None, ge=0)
    """Samples whose trajectories are followed at the end beside the converged ones, for TensorBoard (as epd inspect
    does), at some 250 evaluations each; 0: none. None: 16 where --converged is not 0."""
    dry_run: bool = False
    """Print the plan and what it costs, and stop."""

    def refine_config(self) -> RefineConfig:
        """The part that says how to learn."""
        return RefineConfig(**{name: getattr(self, name) for name in RefineConfig.model_fields})


class Tune(TuneConfig, ModelArguments):
    """Find the best learned solver within a budget: --latency-ms, --calls or --quality.

    Measures what requests cost on this machine, learns the structures that pay here, and leaves the best one with the
    evidence in --out: solver.json, tune.md, tune.json. The same command again goes on where it was stopped.
    """

    model_config = FROZEN

    out: UserFolder = Path("runs/tune")
    """Folder of the result."""

    def tune_config(self) -> TuneConfig:
        """The part that says what is looked for."""
        return TuneConfig(**{name: getattr(self, name) for name in TuneConfig.model_fields})


class Sample(SolverArguments):
    """Draw samples with a learned table or a hand-made rule; leaves samples.npz, grid.png and samples.json in --out.

    What is not a picture (points, latents without a decoder) is kept as states, without a grid. On several processes
    (torchrun) the samples are the same. The same command again goes on after a kill, which costs 128 samples a process
    at most.
    """

    out: UserFolder = Path("runs/sample")
    """Folder of the result; what it holds is replaced."""
    count: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = Field(default=None, ge=1)
    """How many samples, seeds 0, 1, 2, ...; none: as many as --seeds, or 64."""
    seeds: str | None = None
    """Which samples: 0-99, or 1,2,3, or both mixed. A sample is its seed, whatever the batch."""
    batch: int | None = Field(default=None, ge=1)
    """Samples that are solved together, at most 128; none: 128, fewer of samples of more than 32,768 numbers."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states."""
    answer: Answer = "batched"
    """How the parallel points of a step are evaluated: batched, in one network call; serial, in one call each, which
    takes less memory; auto, whichever is faster here, measured at the first call of each size. The same samples to
    rounding."""
    columns: int = Field(default=16, ge=1)
    """Pictures in a row of the grid."""
    grid: int = Field(default=256, ge=0)
    """How many of the pictures go into the grid; 0: no grid."""
    states: bool = False
    """Keep the finished states, too, beside the 8-bit pictures; what is no picture is always kept so."""


class Compare(ModelArguments):
    """Hold tables against every hand-made solver on its best schedule, and against published peers.

    Leaves a Markdown table, JSON and plots in --out. Ctrl-C or a crash cost one cell: the same command again goes on
    from what is kept in --out/cells, where comparisons under other options lie beside it.
    """

    out: UserFolder = Path("runs/compare")
    """Folder of the result."""
    tables: tuple[str, ...] = ()
    """Learned solvers: files, folders of runs, published names, or hub ids."""
    calls: tuple[int, ...] = (3, 5, 7, 9)
    """Sequential network calls to compare at."""
    solvers: tuple[str, ...] = ()
    """Only these solvers, by name or group. hand-made: all of them; GITS: those of one call a step on the schedule that
    errs least along 64 teacher trajectories (arXiv 2405.11326), nothing is trained; PAS: Euler and iPNDM with four
    learned coordinates of a slope where they help (arXiv 2411.06503); ParaDiGMS: a fine grid in parallel, stopped after
    as many sequential calls (arXiv 2305.16317); LD3, S4S and AMED: tables that are learned here, each as long as
    `epd distill` takes; peers: all but the hand-made ones. None: hand-made ones and GITS."""
    samples: int = Field(default=2048, ge=2)
    """Fresh samples that are measured. The 95 % interval of each error says whether they are enough; the same command
    with more of them goes on from the end points of these."""
    batch: int | None = Field(default=None, ge=1)
    """Samples that are solved together; none: 512, fewer of samples of more than 8,192 numbers."""
    seed: int = Field(default=0, ge=0)
    """First seed of the samples."""
    tolerance: float = Field(default=1e-5, gt=0)
    """Relative and absolute tolerance of the converged end points; a float32 network supports 1e-5."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states; float64 for exact models, whose end points then converge to more digits."""
    answer: Answer = "batched"
    """How the parallel points of a step are evaluated: batched, serial or auto, as in `epd sample`; changes seconds and
    rounding only."""


class Inspect(SolverArguments):
    """Look at what a solver does on its way, beside the converged trajectories: errors of every step, directions,
    pictures, principal components.

    Leaves a TensorBoard log in --logdir, in place of an earlier inspection's: tensorboard --logdir runs.
    """

    logdir: UserFolder = Path("runs/inspect")
    """Folder of the log; other logs in it stay."""
    samples: int = Field(default=256, ge=2)
    """Samples that all numbers are of. Each takes twice the solver's evaluations and some 200 more."""
    batch: int | None = Field(default=None, ge=1)
    """Samples that are solved together; none: as many as memory surely holds, at most 256."""
    seed: int = Field(default=0, ge=0)
    """First seed of the samples."""
    shown: str = "0-3"
    """Seeds of the samples whose pictures and projections are shown: 0-3, or 1,2,3."""
    tolerance: float = Field(default=1e-5, gt=0)
    """Relative and absolute tolerance of the converged trajectories; a float32 network supports 1e-5."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states."""
    png: UserPath | None = None
    """Folder for the figures as PNG, too; none: only in TensorBoard."""


class Evaluate(ModelArguments):
    """Measure solvers by their pictures: FID, KID, precision and recall against a reference, mean rewards.

    Leaves evaluation.json and evaluation.md in --out. A sample is its seed, on any number of processes (torchrun). The
    same command again goes on from the features in --out/features, with more samples or solvers, too; a kill costs 128
    samples at most.
    """

    out: UserFolder = Path("runs/evaluate")
    """Folder of the result."""
    tables: tuple[str, ...] = ()
    """Learned solvers: files, folders of runs, published names, or hub ids."""
    solvers: tuple[str, ...] = ()
    """Hand-made solvers that are measured, too, by name or group, each on its best schedule as in compare; none: none.
    """
    calls: tuple[int, ...] = (3, 5, 7, 9)
    """Sequential network calls of the hand-made solvers."""
    reference: UserPath | None = None
    """What pictures are compared with: a folder of PNG or JPG files of the model's size; a .npz with mu and sigma, as
    EDM publishes them, which serves FID alone; or a file of --save-reference."""
    features: str = "inception"
    """What sees pictures as features: inception (torchmetrics and torch-fidelity), or file.py:function or
    package.module:function, which takes pictures (B, 3, H, W) in [0, 1] and returns (B, F), or takes nothing and
    returns a module that does."""
    samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = Field(default=50_000, ge=4)
    """Samples of each solver, seeds --seed and on. FID falls with their number: compare equal numbers only."""
    reward: tuple[str, ...] = ()
    """What else is measured, as the mean over samples: clip-score:CLIP (CLIPScore) and all others that refine takes."""
    manifold: int = Field(default=10_000, ge=4)
    """Features on either side that precision and recall are measured on, and of the reference, KID."""
    save_reference: UserPath | None = None
    """File, as .safetensors, to write the statistics of the folder of pictures to."""
    batch: int | None = Field(default=None, ge=1)
    """Samples that are solved together, at most 128; none: 128, fewer of samples of more than 32,768 numbers."""
    seed: int = Field(default=0, ge=0)
    """First seed of the samples."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states."""


class Doctor(CommandOptions):
    """Check this machine: versions, devices, the torchvision trap, disk; a verdict and a remedy on each line."""

    model_config = FROZEN

    out: UserPath = Path("runs")
    """Where runs will be written."""
