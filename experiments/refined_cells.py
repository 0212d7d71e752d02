"""Which cells `bench_refine` makes: models, what is made of each, sequential calls, training seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..commands.models import load_model
from ..denoisers.protocol import Model
from ..denoisers.rows import RowLimited, limit_rows
from ..denoisers.shapes_world import prompts
from ..distill.config import DistillConfig
from ..distill.points import settled
from ..pipelines.options import ModelOptions
from ..rl.config import RefineConfig
from ..rl.rewards import load_reward
from ..rl.task import Task, score_of
from .cells_command import chosen

SEEDS = range(3)
# What is learned, and the points of a call: of two, a table evaluates twice as often, in as many sequential calls.
LEARNED = {"distilled": 1, "refined": 1, "distilled-k2": 2, "refined-k2": 2}
REWARD, WATCHED = "shapes-graded", ("shapes-all", "shapes-frac")
# Of the study of sample efficiency: baselines with the tables of a prompt on shared noise and each on its own, and the
# default one with more prompts and fewer tables on each.
EFFICIENCY: dict[str, dict[str, object]] = {
    f"{baseline}{'-shared' * shared}{'-64x4' * (groups == 64)}": {
        "baseline": baseline, "shared_noise": shared, "groups": groups, "group_size": 256 // groups
    }
    for groups, baselines in ((16, ("rloo", "grpo", "published")), (64, ("rloo",)))
    for baseline in baselines
    for shared in (True, False)
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model, how its tables are learned, and what every solver is measured on.

    Args:
        calls: sequential calls of the tables.
        reference: the solver, its schedule and its steps that stand for "as good as it gets".
        samples: measured: held-out prompts in turn, noise of the seeds 0, 1, 2, ...
        tuning: samples, of other noise, that a hand-made method's variant and schedule are chosen on.
        ends: of the measured samples, the first ones, whose converged end points are computed.
        tolerance: of these.
        distilling, refining: what differs from the defaults of training.
        efficiency: what differs from `refining` in the study of sample efficiency; empty: there is none.
        points: of a call, of the tables.
        grow: a refinement may start at the refined tables of one call fewer, of all seeds, grown.
    """

    model: str
    guidance: float
    calls: tuple[int, ...]
    reference: tuple[str, str, int]
    samples: int = 2048
    batch: int = 256
    tuning: int = 256
    ends: int = 256
    tolerance: float = 1e-4
    distilling: Mapping[str, object] = field(default_factory=dict)
    refining: Mapping[str, object] = field(default_factory=dict)
    efficiency: Mapping[str, object] = field(default_factory=dict)
    points: tuple[int, ...] = (1,)
    grow: bool = False

    def evaluations(self) -> list[int]:
        """Of the tables, each number once, smallest first: a hand-made solver has one a call."""
        return sorted({points * calls for points in self.points for calls in self.calls})

    def training_model(self) -> Model:
        """The model whose seeds stand for training prompts."""
        return limit_rows(load_model(self.model, ModelOptions(guidance=self.guidance)))

    def task(self) -> Task:
        """Training prompts to learn from, held-out ones to be tested and measured on."""
        train, held_out = prompts("train"), prompts("held-out")
        texts = (*train, *held_out)
        return Task(
            model=prompted(self.model, self.guidance, texts),
            scores={REWARD: score_of(load_reward(REWARD))},
            watched={name: score_of(load_reward(name)) for name in WATCHED},
            texts=lambda seeds: [texts[seed] for seed in seeds],
            train=tuple(range(len(train))),
            held_out=tuple(range(len(train), len(texts))),
        )

    def judged(self) -> dict[str, Any]:
        """What a measured number depends on beside its solver, ready for JSON."""
        return {key: getattr(self, key) for key in ("guidance", "samples", "batch", "ends", "tolerance")}


@functools.cache
def prompted(name: str, guidance: float, texts: tuple[str, ...]) -> RowLimited:
    """The model whose condition number i is the text number i; loaded once in a process."""
    return limit_rows(load_model(name, ModelOptions(guidance=guidance, prompt=texts)))


# A distillation with the defaults takes far longer than what refinement starts from needs.
SHORT = {"family": "dense", "pool": 1024, "validation": 256, "batch": 64, "screening": 30,
         "iterations": 300}  # fmt: skip
SHORTER = {**SHORT, "pool": 768, "validation": 192, "batch": 32, "screening": 10, "iterations": 240,
           "teacher_tolerance": 1e-2, "learn_guidance": True}  # fmt: skip
# Without entropy the policy narrows to one table long before the best one is found.
REFINING = {"lr": 5e-3, "std": 0.1, "entropy": 0.03, "held_out": 512, "shared_noise": False}
# Where samples cost more, the same noise for all tables of a prompt tells more of them; many prompts, few tables each;
# and numbers that move pictures equally, without which all deviations shrink to what the most sensitive one bears.
COSTLY = {"policy": "whitened", "lr": 5e-3, "std": 0.2, "entropy": 0.01, "held_out": 2048, "groups": 64,
          "group_size": 4, "shared_noise": True, "start": "best", "learn_guidance": True}  # fmt: skip
SUBJECTS: dict[str, Subject] = {
    "shapes-exact": Subject(
        "shapes-exact", 5.0, (2, 3), ("DPM-Solver++ 2M", "time uniform", 50), 4096, distilling=SHORT,
        refining={**REFINING, "steps": 240, "evaluate_every": 40},
        efficiency={"steps": 60, "evaluate_every": 5, "converged": 0, "entropy": 0.0},
    ),
    "shapes": Subject(
        "shapes", 3.0, (2, 3, 4, 5), ("Euler", "shift 1", 50), 1024, distilling=SHORTER,
        refining={**COSTLY, "steps": 150, "evaluate_every": 75}, points=(1, 2), grow=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One cell.

    Args:
        what: `reference`, `handmade`, one of LEARNED, or a row of EFFICIENCY.
        calls: sequential; of the reference its steps.
        seed: of training.
    """

    subject: str
    what: str
    calls: int
    seed: int = 0

    def distilling(self) -> DistillConfig:
        """Of the table that is refined."""
        own = {**SUBJECTS[self.subject].distilling, "calls": self.calls, "seed": self.seed,
               "points": LEARNED[self.what]}  # fmt: skip
        return DistillConfig.model_validate(own)

    def refining(self) -> RefineConfig:
        """Of the refinement; the study of sample efficiency refines the table of seed 0, whatever its own is."""
        subject = SUBJECTS[self.subject]
        own = {**subject.efficiency, **EFFICIENCY[self.what]} if self.what in EFFICIENCY else {}
        return RefineConfig.model_validate({**subject.refining, **own, "seed": self.seed})

    def base(self) -> Job:
        """The cell whose table is refined."""
        if self.what in EFFICIENCY:
            return Job(self.subject, "distilled", self.calls, 0)
        return Job(self.subject, self.what.replace("refined", "distilled"), self.calls, self.seed)

    def fewer(self) -> tuple[Job, ...]:
        """The refinements whose tables, grown, this one may start at: of one call fewer, with every seed."""
        subject, calls = SUBJECTS[self.subject], self.calls - 1
        return tuple(replace(self, calls=calls, seed=seed) for seed in SEEDS if subject.grow and calls in subject.calls)

    def distill_settings(self) -> dict[str, Any]:
        """The config with its defaults filled in, ready for JSON: where one of them changes, a cell is another."""
        model = SUBJECTS[self.subject].training_model()
        resolved = settled(model, self.distilling()).resolved(math.prod(model.shape)).model_dump(mode="json")
        return {**resolved, "guidance": model.guidance}

    def path(self, results: Path) -> Path:
        """The cell's file in the folder of all results."""
        seed = "" if self.what in ("reference", "handmade") else f"-{self.seed}"
        return results / self.subject / f"{self.what}-{self.calls}{seed}.json"


def jobs(only: Sequence[str] = ()) -> list[Job]:
    """The cells that fit one of the filters, filter by filter; those of one by model, then by seed and calls.

    Raises:
        ValueError: for a filter that no cell fits.
    """
    every: list[Job] = []
    for name, subject in SUBJECTS.items():
        every.append(Job(name, "reference", subject.reference[2]))
        every += [Job(name, "handmade", calls) for calls in subject.evaluations()]
        for seed in SEEDS:
            for calls in subject.calls:
                every += [Job(name, what, calls, seed) for what, k in LEARNED.items() if k in subject.points]
        if subject.efficiency:
            every += [Job(name, what, subject.calls[0], seed) for seed in SEEDS for what in EFFICIENCY]
    return chosen(every, only, "MODEL,WHAT,CALLS,SEED")
