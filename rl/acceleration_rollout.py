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
from ..accelerators.rapid3 import placed
from ..accelerators.site import Site
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
        taken: every decision that counted, by head; none where nothing was drawn.
    """

    rollout: Rollout
    calls: Tensor
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
        self.live = Deciding(site, placed(self.heads, site), self.dice, deposit=self._deposit)
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
    return Trip(rollout, own.live.spent, {head: Taken.joined(parts) for head, parts in own.taken.items()})


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
