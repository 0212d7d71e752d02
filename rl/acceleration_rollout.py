"""Trajectories of a policy that accelerates: finished samples, the calls that each took, and what was decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..accelerators.accelerate import accelerate, accelerators_of, networks_of
from ..accelerators.contract import Accelerator
from ..accelerators.deciding import Deciding
from ..accelerators.decisions import Dice
from ..accelerators.heads import HeadName, Heads, Taken
from ..accelerators.moment import Moment
from ..accelerators.rapid3 import levels_of, placed
from ..accelerators.site import Site
from ..accelerators.sparsity import Levels, attention_share
from ..denoisers.as_network import AsNetwork
from ..denoisers.rows import RowLimited
from ..solvers.table import Table
from .task import Draws, Rollout, Task


@dataclass(frozen=True, eq=False)
class Trip:
    """Trajectories under a policy.

    Args:
        rollout: finished samples, B of them.
        calls: (B,) float64, K of each: sparse calls count as much as they cost.
        computed: (steps, B) bool, who was computed in each step of the solver.
        taken: every decision that counted, by head; none where nothing was drawn.
    """

    rollout: Rollout
    calls: Tensor
    computed: Tensor
    taken: Mapping[HeadName, Taken]


class Exploring:
    """A policy while it is learned, as an accelerator; no file can name it.

    Args:
        heads: of the policy.
        dice: what choices are drawn with; None: the likeliest ones.
    """

    def __init__(self, heads: Heads, dice: Callable[[], Dice] | None = None) -> None:
        self.heads, self.dice = heads, dice
        self.taken: dict[HeadName, list[Taken]] = {}
        self.live: Deciding | None = None

    def attach(self, site: Site) -> Deciding:
        sparsity = levels_of(self.heads.layout, site)
        self.live = Deciding(site, placed(self.heads, site), self.dice, sparsity, self._deposit)
        return self.live

    def plan(self, calls: Sequence[Moment]) -> None:
        """None: it depends on the sample."""

    def _deposit(self, head: HeadName, taken: Taken) -> None:
        self.taken.setdefault(head, []).append(taken)


def travel(task: Task, table: Table, heads: Heads, draws: Draws, seeds: list[int] | None, dtype: torch.dtype) -> Trip:
    """Solves samples under a policy, those that ask for the network in each step together.

    Args:
        table: the solver whose calls are left out.
        seeds: of the samples' choices, one each; None: the likeliest ones.
    """
    own = Exploring(heads, None if seeds is None else lambda: Dice(seeds))
    with attached(task.model, own):
        rollout = task.roll_out(table.coefficients(), draws, dtype, check=False)
    assert own.live is not None, "attached above"
    taken = {head: Taken.joined(parts) for head, parts in own.taken.items()}
    return Trip(rollout, own.live.spent, own.live.computed, taken)


class Sparsely:
    """All rows at one sparse level, as an accelerator, to see what it costs.

    Args:
        masses: of the levels.
        level: from 1.
    """

    def __init__(self, masses: tuple[float, ...], block: int, level: int) -> None:
        self.masses, self.block, self.level = masses, block, level
        self.kept: list[float] = []

    def attach(self, site: Site) -> Sparsely:
        self._levels = Levels(site, self.masses, self.block)
        self._levels.told = lambda share: self.kept.append(float(share.mean()))
        return self

    def plan(self, calls: Sequence[Moment]) -> None:
        """None: it depends on the sample."""

    def begin(self) -> None:
        """Nothing is kept."""

    def before(self, now: Moment) -> None:
        self._levels.use(torch.full((now.rows,), self.level))

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        return slopes

    def stored(self) -> int:
        return 0


def costs_of_levels(
    task: Task, table: Table, masses: tuple[float, ...], block: int, dtype: torch.dtype, count: int = 8
) -> tuple[float, ...]:
    """Of a network call at each level, in dense calls, by the products that it leaves out: 1 - a (1 - kept).

    a is the share of attention's products in a call, and kept the mean share of blocks that are attended to along the
    trajectories of a few training samples. What a device gains in time is less, and nothing where masks do it.
    """
    draws, out = task.draw(count, 1, False, torch.Generator().manual_seed(0)), []
    x, level = torch.zeros(1, *task.model.shape, device=task.model.device), torch.tensor(task.model.sigma_max).double()
    with torch.no_grad():
        attention = attention_share(lambda: task.model.for_seeds([0])(x, level))
    for number in range(1, len(masses) + 1):
        own = Sparsely(masses, block, number)
        with attached(task.model, own):
            task.roll_out(table.coefficients(), draws, dtype)
        if not own.kept:
            raise ValueError(f"no attention of {task.model.name} can be sparse: leave sparse out of --heads")
        out.append(1 - attention * (1 - sum(own.kept) / len(own.kept)))
    return tuple(out)


@contextmanager
def attached(model: RowLimited, accelerator: Accelerator) -> Iterator[None]:
    """The model with this accelerator before those that it has."""
    others = accelerators_of(model)
    accelerate(model, accelerator, *others)
    try:
        yield
    finally:
        accelerate(model, *others)


def with_network(task: Task) -> Task:
    """The same task, whose model has a network that rows can be left out of, to the same bits."""
    try:
        networks_of(task.model)
    except ValueError:
        limited = task.model
        return replace(task, model=RowLimited(AsNetwork(limited.model), limited.fixed, limited.max_memory))
    return task
