"""Which cells `bench_learned` makes: models, families of learned solvers, sequential calls, training seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ..commands.models import load_model
from ..denoisers.protocol import Model
from ..denoisers.rows import limit_rows
from ..distill.config import DistillConfig
from ..distill.families import FAMILIES as LEARNED
from ..distill.points import settled
from ..pipelines.options import ModelOptions
from .cells_command import chosen

CALLS, SEEDS = (3, 5, 7, 9), range(5)
TRUE_LEVELS = [name for name in LEARNED["dense"].learn if name not in ("sigma_scale", "anchor_scale")]
# Name -> what differs from the defaults of a run; those of ONCE are learned with one training seed.
FAMILIES: dict[str, dict[str, object]] = {
    "dense-1": {"family": "dense", "points": 1},
    "dense-2": {"family": "dense", "points": 2},
    "two-call": {"family": "two-call", "points": 2},
    "s4s": {"family": "s4s"},
    "epd": {"family": "epd", "points": 2},
    "epd-plugin": {"family": "epd-plugin", "points": 2},
}
ONCE: dict[str, dict[str, object]] = {
    "ld3": {"family": "ld3"},
    "amed": {"family": "amed"},
    "dense-1-longer": {"family": "dense", "points": 1, "iterations": 2000, "pool": 2048},
    "dense-1-memory-1": {"family": "dense", "points": 1, "memory": 1},
    "dense-1-true-levels": {"family": "dense", "points": 1, "learn": TRUE_LEVELS},
    "two-call-memory-0": {"family": "two-call", "points": 2, "memory": 0},
}
# Families whose tables of fewer calls are those of another.
GROWN_FROM = {"dense-1-longer": "dense-1"}
ABLATIONS = tuple(name for name in ONCE if name not in GROWN_FROM)
# A run of the network with the defaults takes half an hour and more on two cores.
SHORT = {"pool": 1024, "validation": 256, "batch": 64, "screening": 60, "iterations": 500}
SHORTER = {**SHORT, "screening": 30, "iterations": 300}  # guidance doubles each evaluation


@dataclass(frozen=True)
class Subject:
    """A model, how its tables are learned, and what they are measured on: fresh samples of the seeds 0, 1, 2, ...

    Args:
        tolerance: of the converged end points.
        tuning: samples that a hand-made method's variant and schedule are chosen on.
        training: what differs from the defaults of training.
        once: families that are learned with seed 0 alone.
    """

    model: str
    samples: int
    batch: int
    dtype: torch.dtype
    tolerance: float
    tuning: int = 256
    guidance: float | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    once: Sequence[str] = ()

    def load(self) -> Model:
        """The model, with calls of bounded size."""
        return limit_rows(load_model(self.model, ModelOptions(guidance=self.guidance)))

    def judged(self) -> dict[str, Any]:
        """What a measured number depends on beside its solver, ready for JSON."""
        numbers = {key: getattr(self, key) for key in ("guidance", "samples", "batch", "tolerance", "tuning")}
        return {**numbers, "dtype": str(self.dtype).removeprefix("torch.")}


# The mixtures are exact in float64; the network costs far more, and supports a tolerance of 1e-4 in float32.
SUBJECTS: dict[str, Subject] = {
    "digits-exact": Subject("digits-exact", 16384, 512, torch.float64, 1e-6, once=ABLATIONS),
    "digits-exact-flow": Subject("digits-exact-flow", 16384, 512, torch.float64, 1e-6, once=("ld3", "amed")),
    "digits": Subject("digits", 4096, 64, torch.float32, 1e-4, 128, 1.0, SHORT, ("dense-1-longer",)),
    "digits-guidance-2": Subject("digits", 4096, 64, torch.float32, 1e-4, 128, 2.0, training=SHORTER),
}


class Training(Protocol):
    """A cell that is a training run and its measurement."""

    @property
    def subject(self) -> str:
        """Where the cell lies."""
        ...

    @property
    def family(self) -> str:
        """What it is called."""
        ...

    @property
    def calls(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def of(self) -> Subject:
        """What is learned from and measured on."""
        ...

    def config(self) -> DistillConfig:
        """Of the training run."""
        ...

    def settings(self) -> dict[str, Any]:
        """The config with its defaults filled in, ready for JSON: where one of them changes, a cell is another."""
        ...

    def fewer(self) -> Training | None:
        """The cell of fewer calls that it is grown from, if any."""
        ...

    def narrower(self) -> Training | None:
        """The cell of fewer points that it is widened from, if any."""
        ...

    def teacher(self, results: Path) -> Path | None:
        """The file that says what its teacher took; None where it is not timed apart from the run."""
        ...

    def path(self, results: Path) -> Path:
        """The cell's file in the folder of all results."""
        ...


def settings_of(subject: Subject, config: DistillConfig) -> dict[str, Any]:
    """See `Training.settings`."""
    model = subject.load()
    return settled(model, config).resolved(math.prod(model.shape)).model_dump(mode="json")


@dataclass(frozen=True)
class Job:
    """One cell: a training run and its measurement, see `Training`."""

    subject: str
    family: str
    calls: int
    seed: int

    @property
    def of(self) -> Subject:
        return SUBJECTS[self.subject]

    def config(self) -> DistillConfig:
        family = {**FAMILIES, **ONCE}[self.family]
        own = {**self.of.training, **family, "calls": self.calls, "seed": self.seed}
        return DistillConfig.model_validate(own)

    def settings(self) -> dict[str, Any]:
        return settings_of(self.of, self.config())

    def fewer(self) -> Job | None:
        smaller = [calls for calls in CALLS if calls < self.calls]
        family = GROWN_FROM.get(self.family, self.family)
        return replace(self, family=family, calls=smaller[-1]) if smaller else None

    def narrower(self) -> None:
        """Each count of points is learned by itself."""

    def teacher(self, results: Path) -> Path:
        return results / self.subject / "teacher.json"

    def path(self, results: Path) -> Path:
        return results / self.subject / f"{self.family}-{self.calls}-{self.seed}.json"


def jobs(only: Sequence[str] = ()) -> list[Job]:
    """The cells that fit one of the filters, seed 0 of everything first.

    Raises:
        ValueError: for a filter that no cell fits.
    """
    every = [
        Job(name, family, calls, seed)
        for seed, (name, subject) in itertools.product(SEEDS, SUBJECTS.items())
        for family in (*FAMILIES, *(subject.once if seed == 0 else ()))
        for calls in CALLS
    ]
    return chosen(every, only, "MODEL,FAMILY,CALLS,SEED")
