"""What the benchmark of StepMix measures: sweeps of random processes, offline data, and the tuner on the digits."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...rl.stepmix import NotCertified, offline_baseline
from ...rl.stepmix_episodes import History, Method, play_episodes
from ...rl.tabular import Array, Flags, TabularMDP, random_mdp, softmax_policy
from ...rl.tabular_bounds import ExplorationBonus, TabularKnowledge
from ...runs.environment import environment
from ..bench_learned import read, write
from . import digits

METHODS: tuple[Method, ...] = ("stepmix", "epsmix", "cumulative", "optimism", "baseline")
USUAL = ExplorationBonus("both", union="simple")
GAPS = (0.01, 0.05, 0.2, 0.5)
BONUSES = (
    ExplorationBonus(), ExplorationBonus(union="simple"), ExplorationBonus("bernstein"),
    ExplorationBonus("bernstein", union="simple"), ExplorationBonus("both"), USUAL,
    *(ExplorationBonus("both", union="simple", unproved_scale=c) for c in (0.5, 0.3, 0.1)),
)  # fmt: skip
LENGTHS, STATES = (2, 3, 5, 8), (2, 5, 10, 20)
OFFLINE = (100, 300, 1000, 3000, 10000, 30000, 100000)
POINTS = 100  # of a curve


@dataclass(frozen=True)
class Cell:
    """Trials of a method, each on a random process of its own.

    Args:
        gap: the floor is 1 - gap of the baseline's value.
        temperature: the baseline is the softmax of Q* / temperature.
        offline: of how many episodes of a uniform policy a baseline is made, instead of playing.
    """

    method: Method = "stepmix"
    bonus: ExplorationBonus = field(default_factory=ExplorationBonus)
    gap: float = 0.2
    steps: int = 3
    states: int = 5
    actions: int = 5
    temperature: float = 0.1
    episodes: int = 20000
    trials: int = 20
    offline: int = 0

    @property
    def path(self) -> str:
        """In the folder of results."""
        bonus = str(self.bonus).replace(", ", "-").replace("unproved scale ", "")
        sizes = f"{self.steps}x{self.states}x{self.actions}"
        if self.offline:
            return f"offline/{bonus}-gap-{self.gap:g}-{sizes}-{self.offline}.json"
        return f"random/{self.method}-{bonus}-gap-{self.gap:g}-{sizes}.json"


@dataclass(frozen=True)
class Digits:
    """The tuner on real runs, with no bonus the process that they make."""

    bonus: ExplorationBonus | None = None
    batches: int = 0

    @property
    def path(self) -> str:
        """In the folder of results."""
        return "digits/process.json" if self.bonus is None else f"digits/{self.bonus.kind}.json"


EPISODES = tuple(Cell(method) for method in METHODS)
BY_GAP = {
    bonus: {gap: {m: Cell(m, bonus, gap) for m in METHODS[:4]} for gap in GAPS} for bonus in (ExplorationBonus(), USUAL)
}
BY_BONUS = {bonus: {m: Cell(m, bonus, 0.1) for m in ("stepmix", "optimism")} for bonus in BONUSES}
BY_LENGTH = {h: {m: Cell(m, USUAL, steps=h) for m in METHODS[:2]} for h in LENGTHS}
BY_STATES = {s: {m: Cell(m, USUAL, states=s) for m in METHODS[:2]} for s in STATES}
BY_DATA = {bonus: {n: Cell(bonus=bonus, offline=n) for n in OFFLINE} for bonus in (ExplorationBonus(), USUAL)}
DIGITS = (Digits(), Digits(ExplorationBonus(), 160), Digits(USUAL, 60))
CELLS: tuple[Cell | Digits, ...] = tuple(
    dict.fromkeys([
        *EPISODES, *(cell for rows in BY_GAP.values() for row in rows.values() for cell in row.values()),
        *(cell for rows in (BY_BONUS, BY_LENGTH, BY_STATES, BY_DATA) for row in rows.values() for cell in row.values()),
        *DIGITS,
    ])
)  # fmt: skip


def worlds(cell: Cell) -> TabularMDP:
    """One process a trial, of the seeds 0, 1, ..."""
    made = [random_mdp(np.random.default_rng(s), cell.steps, cell.states, cell.actions) for s in range(cell.trials)]
    return TabularMDP(*(np.stack([getattr(m, name) for m in made]) for name in ("transitions", "rewards", "initial")))


def measured(cell: Cell) -> dict[str, Any]:
    """Curves and totals of a cell's trials."""
    if cell.offline:
        return measured_offline(cell)
    mdp = worlds(cell)
    best, q = mdp.optimal()
    baseline = softmax_policy(q, cell.temperature)
    earned = mdp.value(baseline)
    floor = (1 - cell.gap) * earned
    history = play_episodes(mdp, baseline, floor, cell.method, cell.episodes, cell.bonus, seeds=range(cell.trials))
    return {**told(history, mdp.value(best)), "baseline": earned.tolist()}


def told(history: History, best: Array) -> dict[str, Any]:
    """What is kept of episodes: totals of each trial, and means over the trials at some of the episodes."""
    steps, episodes = history.counts.shape[1], history.values.shape[1]
    mixing = np.where(history.start > 0, (steps - history.start + history.rho) / steps, history.rho)
    violations = history.violations
    at = np.unique(np.geomspace(10, episodes, POINTS).round().astype(int))
    windows = list(zip([0, *at[:-1]], at, strict=True))

    def over(x: Array) -> list[float]:
        return [round(float(x[:, a:b].mean()), 6) for a, b in windows]

    def first(x: Flags) -> list[int | None]:
        return [int(row.argmax()) if row.any() else None for row in x]

    return {
        "best": best.tolist(), "floor": history.floor.tolist(),
        "regret": (best[:, None] - history.values).sum(1).tolist(),
        "regret_half": (best[:, None] - history.values)[:, : episodes // 2].sum(1).tolist(),
        "violations": violations.sum(1).tolist(),
        "first_mixing": first(mixing > 0), "first_pure": first(mixing == 1), "plans": history.plans.tolist(),
        "at": at.tolist(), "values": over(history.values / best[:, None]),
        "cumulated": [round(float(violations[:, :b].sum(1).mean()), 4) for b in at], "mixing": over(mixing),
        "one": {"start": history.start[0, at - 1].tolist(), "rho": history.rho[0, at - 1].round(6).tolist()},
    }  # fmt: skip


def measured_offline(cell: Cell) -> dict[str, Any]:
    """What offline data certify, and how much the policy that they certify earns; both as shares of the best value."""
    mdp = worlds(cell)
    uniform = np.full(mdp.rewards.shape, 1 / cell.actions)
    data = play_episodes(mdp, uniform, 0.0, "baseline", cell.offline, cell.bonus, range(cell.trials), growth=0.9).counts
    best = mdp.value(mdp.optimal()[0])
    rows = []
    for t in range(cell.trials):
        known = TabularKnowledge(data[t], mdp.rewards[t])
        policy, low = offline_baseline(known, 0.0, cell.bonus)
        earned = float(TabularMDP(mdp.transitions[t], mdp.rewards[t]).value(policy))
        rows.append((low / best[t], earned / best[t], certifies(known, (1 - cell.gap) * best[t], cell.bonus)))
    lower, value, certified = zip(*rows, strict=True)
    return {"lower": lower, "value": value, "certified": certified}


def certifies(known: TabularKnowledge, floor: float, bonus: ExplorationBonus) -> bool:
    """Whether the data are enough for a baseline above this floor."""
    try:
        offline_baseline(known, floor, bonus)
    except NotCertified:
        return False
    return True


def settings(cell: Cell | Digits) -> dict[str, Any]:
    """What a cell's numbers depend on."""
    own = dataclasses.asdict(cell)
    if isinstance(cell, Digits):
        own |= {name: getattr(digits, name) for name in ("STEPS", "DECISIONS", "KEPT", "WORST", "BATCH", "MEASURED")}
    return own


def missing(folder: Path, only: Sequence[str]) -> list[Cell | Digits]:
    """Cells whose path begins with one of `only`, and that aren't there with these settings.

    Raises:
        ValueError: for a beginning that no path has.
    """
    for start in only:
        if not any(cell.path.startswith(start) for cell in CELLS):
            begins = dict.fromkeys(cell.path.split("/")[0] for cell in CELLS)
            raise ValueError(f"no cell's path begins with {start!r}: paths begin with {', '.join(begins)}")
    wanted = [cell for cell in CELLS if not only or any(cell.path.startswith(start) for start in only)]
    return [cell for cell in wanted if read(folder / cell.path).get("settings") != settings(cell)]


def make(cell: Cell | Digits, folder: Path) -> None:
    """Measures a cell and writes its file."""
    began = time.process_time()
    if isinstance(cell, Cell):
        found: Mapping[str, Any] = measured(cell)
    elif cell.bonus is None:
        found = digits.process()
    else:
        found = digits.tuned(cell.bonus, cell.batches, read(folder / Digits().path))
    spent = round(time.process_time() - began, 2)
    write(folder / cell.path, {"settings": settings(cell), **found, "cpu_seconds": spent, "environment": environment()})


def middle(values: Sequence[float | None]) -> float:
    """The median, where None is later than everything."""
    return float(np.median([math.inf if x is None else x for x in values]))
