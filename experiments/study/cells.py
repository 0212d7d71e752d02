"""Which cells the study makes, in the order of what matters most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...distill.config import DistillConfig
from ...distill.families import FAMILIES as LEARNED
from ...evaluation.peers import FAMILIES as TRAINED_PEERS
from ..cells_command import chosen
from ..learned_cells import Subject, settings_of

CALLS = (3, 5, 7, 9)
# Every family gets as many updates of as many samples as the others of its world: what fits into an hour on two cores.
SHORT = {"pool": 8192, "batch": 64, "screening": 30, "iterations": 300}
# An update costs several times as much there, and there is time for one training seed. At guidance 5 most of an error
# is that of a few samples in a hundred: of 128 held-out ones often none goes astray, and the best table would be luck.
SHORTER = {"pool": 1024, "validation": 512, "batch": 16, "screening": 15, "iterations": 200}
NETWORK = {**SHORTER, "validation": 128, "iterations": 500}
EXACT = Subject("digits-exact", 8192, 256, torch.float64, 1e-6, training=SHORT)
SHAPES = Subject("shapes-exact", 1024, 64, torch.float32, 1e-4, 64, 5.0, SHORTER)
GUIDED = "shapes-exact-guidance-2"
WORLDS: dict[str, Subject] = {
    "digits-exact": EXACT,
    "shapes-exact": SHAPES,
    "digits": Subject("digits", 1024, 64, torch.float32, 1e-4, 32, 1.0, NETWORK),
    "ablations": EXACT,
    GUIDED: replace(SHAPES, guidance=2.0),
}
HEADLINE = {"digits-exact": range(5), "shapes-exact": range(1), "digits": range(1)}  # training seeds
# Training seeds that don't fit into the hour.
LATER, ABLATED_LATER = {"shapes-exact": range(1, 5), "digits": range(1, 5)}, range(1, 3)
OURS: dict[str, dict[str, object]] = {
    "dense-1": {"family": "dense", "points": 1},
    "dense-2": {"family": "dense", "points": 2},
}
PEERS: dict[str, dict[str, object]] = {
    "S4S": TRAINED_PEERS["S4S"],
    "LD3": TRAINED_PEERS["LD3"],
    "AMED": TRAINED_PEERS["AMED"],
    "EPD": {"family": "epd", "points": 2},
    "EPD-Plugin": {"family": "epd-plugin", "points": 2},
}
# Solvers that are not distilled, with those that are measured beside them; ParaDiGMS evaluates up to a hundred rows a
# call, which only the cheapest world allows.
HAND, PAS = "hand-made", "PAS"
FOUND: dict[str, tuple[str, ...]] = {"digits-exact": ("GITS", "ParaDiGMS")}
ALSO_FOUND = ("GITS",)


@dataclass(frozen=True)
class Ablation:
    """One thing that is done otherwise.

    Args:
        about: the question that it is of.
        says: what is done.
        changes: to the settings of a run.
        against: the row that differs in this alone.
    """

    about: str
    says: str
    changes: Mapping[str, object]
    against: str = "base"


def without(family: str, *names: str) -> list[str]:
    """What a family learns, but for these."""
    return [name for name in LEARNED[family].learn if name not in names]


DENSE, TWO_CALL = {"family": "dense", "points": 1}, {"family": "two-call", "points": 2}
FIXED = {**DENSE, "learn": without("dense", "sigmas")}
ONE_GRID = {**FIXED, "schedule": "polynomial"}
ABLATIONS: dict[str, Ablation] = {
    "base": Ablation("base", "`dense`, one point a call", DENSE),
    **{f"points-{k}": Ablation("points a call", f"{k} points", {**DENSE, "points": k}) for k in (2, 3, 4)},
    "asked-first": Ablation("analytic first step", "a call at the first level", {**DENSE, "afs": False}),
    "true-levels": Ablation(
        "levels that the network is told", "the true ones",
        {**DENSE, "learn": without("dense", "sigma_scale", "anchor_scale")},
    ),
    "memory-0": Ablation("memory", "no earlier slope", {**DENSE, "memory": 0}),
    "memory-1": Ablation("memory", "those of one step", {**DENSE, "memory": 1}),
    "fixed-sigmas": Ablation("schedule", "the best of four usual ones", FIXED),
    "one-grid": Ablation("schedule", "the polynomial one", ONE_GRID, "fixed-sigmas"),
    "steps": Ablation("objective", "the state after every step", {**ONE_GRID, "objective": "steps"}, "one-grid"),
    "both": Ablation("objective", "end point and every step", {**ONE_GRID, "objective": "both"}, "one-grid"),
    **{f"pool-{n}": Ablation("training samples", f"{n:,}", {**DENSE, "pool": n}) for n in (64, 256, 1024, 4096)},
    **{
        f"tolerance-{t:g}": Ablation("teacher", f"tolerance {t:g}", {**DENSE, "teacher_tolerance": t})
        for t in (1e-1, 1e-2, 1e-4)
    },
    **{
        f"teacher-{n}": Ablation(
            "teacher", f"iPNDM, {n} steps a step", {**DENSE, "teacher": "ipndm", "teacher_multiplier": n}
        )
        for n in (2, 8)
    },
    **{
        f"start-{name}": Ablation(
            "initialisation", f"the {name.replace('_', ' ')} schedule alone", {**DENSE, "schedule": name}
        )
        for name in ("polynomial", "time_uniform", "logsnr")
    },
    "ld3": Ablation("weights", "of Adams-Bashforth, third order (LD3)", PEERS["LD3"]),
    "relaxed": Ablation("objective", "end point, relaxed by 0.1", {**DENSE, "relax": 0.1}),
    "ld3-relaxed": Ablation(
        "objective", "LD3, relaxed by 0.1, as published", {**PEERS["LD3"], "relax": 0.1}, "ld3"
    ),
    "adam": Ablation("optimiser", "Adam", {**DENSE, "optimizer": "adam"}),
    "two-call": Ablation("two calls a step", "`two-call`, two points", TWO_CALL),
    "epd": Ablation("two calls a step", "EPD, two points, by its end point", PEERS["EPD"], "two-call"),
    "epd-steps": Ablation(
        "objective", "EPD by every step, as published", {**PEERS["EPD"], "objective": "steps"}, "epd"
    ),
    "two-call-no-anchor": Ablation(
        "anchor", "`two-call` without it", {**TWO_CALL, "learn": without("two-call", "anchor")}, "two-call"
    ),
    "two-call-memory-0": Ablation("memory", "`two-call` without it", {**TWO_CALL, "memory": 0}, "two-call"),
}  # fmt: skip
ABLATED_CALLS = 5
# Learned on, used on.
TRANSFERS = (
    ("digits-exact", "digits"),
    ("digits", "digits-exact"),
    ("shapes-exact", GUIDED),
    (GUIDED, "shapes-exact"),
)
TRANSFERRED_CALLS = (3, 5)


@dataclass(frozen=True)
class Run:
    """A training run and its measurement, see `learned_cells.Training`."""

    subject: str
    family: str
    calls: int
    seed: int

    @property
    def of(self) -> Subject:
        return WORLDS[self.subject]

    def config(self) -> DistillConfig:
        family = ABLATIONS[self.family].changes if self.subject == "ablations" else {**OURS, **PEERS}[self.family]
        return DistillConfig.model_validate({**self.of.training, **family, "calls": self.calls, "seed": self.seed})

    def settings(self) -> dict[str, Any]:
        return settings_of(self.of, self.config())

    def fewer(self) -> Run | None:
        smaller = [calls for calls in CALLS if calls < self.calls and self.subject != "ablations"]
        return replace(self, calls=smaller[-1]) if smaller else None

    def narrower(self) -> Run | None:
        """`dense-2` begins at the table of `dense-1`, too, as `--points 1,2` has it."""
        return replace(self, family="dense-1") if self.family == "dense-2" and self.subject != "ablations" else None

    def teacher(self, results: Path) -> None:
        """It is timed with the world's, or is an ablation's own."""

    def path(self, results: Path) -> Path:
        return results / self.subject / f"{self.family}-{self.calls}-{self.seed}.json"


@dataclass(frozen=True)
class Begin:
    """The teacher's trajectories and the converged end points of a world, which its other cells share."""

    subject: str
    family: str = "teacher"
    calls: int = 0
    seed: int = 0

    def path(self, results: Path) -> Path:
        """The cell's file in the folder of all results."""
        return results / self.subject / "teacher.json"


@dataclass(frozen=True)
class Untrained:
    """Every hand-made solver and the peers that need no training, or those of one that needs little."""

    subject: str
    family: str
    calls: int
    seed: int = 0

    def path(self, results: Path) -> Path:
        """The cell's file in the folder of all results."""
        return results / self.subject / f"{self.family.replace('-', '').lower()}-{self.calls}.json"


@dataclass(frozen=True)
class Transfer:
    """The table of a run, measured on another world.

    Args:
        family, calls, seed: of the run.
        source: where it was learned.
        target: where it is used.
    """

    subject: str
    family: str
    calls: int
    seed: int
    source: str
    target: str

    def run(self) -> Run:
        """The run."""
        return Run(self.source, self.family, self.calls, self.seed)

    def path(self, results: Path) -> Path:
        """The cell's file in the folder of all results."""
        return results / "transfer" / f"{self.source}--{self.target}-{self.family}-{self.calls}-{self.seed}.json"


Cell = Run | Begin | Untrained | Transfer


def headline(name: str, seeds: Sequence[int], calls: Sequence[int] = CALLS, families: Sequence[str] = ()) -> list[Cell]:
    """All solvers on a world, seed 0 of everything first."""
    out: list[Cell] = []
    for seed in seeds:
        for at in calls:
            found = [] if seed else [HAND] if families else [HAND, PAS]
            out += [Untrained(name, family, at) for family in found]
            out += [Run(name, family, at, seed) for family in families or (*OURS, *PEERS)]
    return out


def ablations(seeds: Sequence[int]) -> list[Cell]:
    """Every ablation."""
    return [Run("ablations", name, ABLATED_CALLS, seed) for seed in seeds for name in ABLATIONS]


def transfers(pairs: Sequence[tuple[str, str]]) -> list[Cell]:
    """Tables that are used where they were not learned."""
    return [Transfer("transfer", family, at, 0, learned, used)
            for learned, used in pairs for family in OURS for at in TRANSFERRED_CALLS]  # fmt: skip


def later() -> list[Cell]:
    """What doesn't fit into the hour: it is made where `--only` asks for it."""
    every = [cell for name, seeds in LATER.items() for cell in headline(name, seeds)]
    every += ablations(ABLATED_LATER)
    every += [Begin(GUIDED), *headline(GUIDED, (0,), TRANSFERRED_CALLS, [*OURS])]
    return every + transfers([pair for pair in TRANSFERS if GUIDED in pair])


def cells(only: Sequence[str] = ()) -> list[Cell]:
    """The cells that fit one of the filters SUBJECT,FAMILY,CALLS,SEED; without a filter those of the hour.

    Raises:
        ValueError: for a filter that no cell fits.
    """
    every: list[Cell] = [Begin(name) for name in HEADLINE]
    for name, seeds in HEADLINE.items():
        every += headline(name, seeds)
    every += [*ablations((0,)), *transfers([pair for pair in TRANSFERS if GUIDED not in pair])]
    return chosen(every + (later() if only else []), only, "SUBJECT,FAMILY,CALLS,SEED")
