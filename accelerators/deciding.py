"""A policy at work in a trajectory: for each sample it jumps, takes the last slope again, or has the network asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .decisions import REUSE, Dice, jump_of
from .heads import HeadName, Heads, Seen, Taken, as_map, look
from .moment import Moment, Work
from .site import Site


class Sparsity(Protocol):
    """Attention that can leave out a part of its products."""

    def use(self, levels: Tensor | None) -> None:
        """The level of each row of the next call, (rows,) int64; 0 is dense. None: all dense."""
        ...


class Deciding:
    """See `Live`. Each sample is on its own: a call computes those that ask for it, together.

    At a solver's state a sample is either in a jump, and takes its last slope again, or it decides whether to reuse
    that slope all the same; if not, how densely it is computed; and then, seeing the slope, how far it jumps. The
    first call of a trajectory is always computed. Points of a fan follow their state.

    Args:
        site: of the network.
        heads: the policy.
        dice: what choices are drawn with; None: the likeliest ones.
        sparsity: what the sparse head's levels are told to.
        deposit: what is told every decision that counted.
    """

    def __init__(
        self,
        site: Site,
        heads: Heads,
        dice: Callable[[], Dice] | None = None,
        sparsity: Sparsity | None = None,
        deposit: Callable[[HeadName, Taken], None] | None = None,
    ) -> None:
        self._site, self._heads, self._sparsity, self._deposit = site, heads, sparsity, deposit
        self._make_dice, self._warned = dice, False
        self.begin()

    def begin(self) -> None:
        self._dice = None if self._make_dice is None else self._make_dice()
        self._slope: Tensor | None = None  # (B, *S) the last one of each sample
        self._map: Tensor | None = None  # (B, C, h, w) what the network was given for it
        self._now: Tensor | None = None  # the same of the present step
        self._asked: Tensor | None = None  # (B,) bool, which samples are computed in the present step
        self._deciding: Tensor | None = None  # (B,) bool, those that are not in a jump
        self._levels: Tensor | None = None  # (copies B,) of the present step
        self._next = self._at = self._spent = torch.empty(0)  # (B,): where a sample decides again, was computed, K
        self._computed: list[Tensor] = []  # (B,) bool of each step so far

    @property
    def spent(self) -> Tensor:
        """(B,) float64: calls of each sample so far, a sparse one counting as much as it costs."""
        return self._spent

    @property
    def computed(self) -> Tensor:
        """(steps, B) bool: who was computed in each step so far."""
        return torch.stack(self._computed) if self._computed else torch.zeros(0, 0, dtype=torch.bool)

    def before(self, now: Moment) -> Work:
        if now.state and now.branch == 0:
            self._decide(now)
        asked, levels = self._asked, self._levels
        if self._sparsity is not None:
            self._sparsity.use(None if levels is None else levels.repeat_interleave(now.points))
        if self._slope is None or asked is None or bool(asked.all()):
            return Work(blocks=self._share(None))
        rows = asked.nonzero().flatten()
        points = [b * now.points + k for b in rows.tolist() for k in range(now.points)]
        return Work(points, blocks=self._share(rows))

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        with torch.no_grad():
            if self._slope is None or self._asked is None:
                if not now.state:  # of a table that begins with an analytic slope: no state was seen yet
                    return slopes
                self._first(now, slopes)
            assert self._asked is not None and self._slope is not None, "made in the first call"
            held = slopes
            if not bool(self._asked.all()):
                held = torch.where(_beside(self._asked, slopes), slopes, self._slope.to(slopes.dtype))
            if now.state:
                self._account(now, held[0])
        return held

    def stored(self) -> int:
        return sum(kept.nbytes for kept in (self._slope, self._map, self._now) if kept is not None)

    def _decide(self, now: Moment) -> None:
        """Who is computed in this step, and how densely."""
        if now.first and now.steps != self._heads.layout.steps and not self._warned:
            self._warned = True
            warnings.warn(
                f"the policy was learned for {self._heads.layout.steps} steps, and this solver takes {now.steps}: it "
                "may leave out too much, or too little",
                stacklevel=2,
            )
        self._now = as_map(_states(self._site.state, now), self._heads.layout.size)
        self._levels = None
        if self._now.shape[1] != self._heads.layout.channels:
            raise ValueError(
                f"the policy is for states of {self._heads.layout.channels} channels, and this network is given "
                f"{self._now.shape[1]}: give one that was learned for this model"
            )
        if self._slope is None:
            self._levels = self._dense_or_not(now, torch.arange(now.samples), first=True)
            return
        deciding = self._next <= now.step
        asked = deciding.clone()
        if "cache" in self._heads.layout.heads and bool(deciding.any()):
            rows = deciding.nonzero().flatten()
            asked[rows] = self._choose("cache", now, rows, self._changed(now, rows)).cpu() != REUSE
        self._deciding, self._asked = deciding, asked
        self._levels = self._dense_or_not(now, asked.nonzero().flatten())

    def _dense_or_not(self, now: Moment, rows: Tensor, first: bool = False) -> Tensor | None:
        """(copies B,) levels, where there is a head for them; of samples that are not computed 0."""
        if "sparse" not in self._heads.layout.heads or self._sparsity is None or not len(rows):
            return None
        assert self._now is not None, "seen at the state"
        if first:  # all that there is of a change is the state
            count = torch.zeros_like(rows).to(self._now.device)
            seen = look(self._now, self._now, now.sigma[0], now.steps, count + now.steps, count, count)
        else:
            seen = self._changed(now, rows)
        levels = torch.zeros(now.samples, dtype=torch.long)
        levels[rows] = self._choose("sparse", now, rows, seen).cpu()
        return levels.repeat(now.copies)

    def _changed(self, now: Moment, rows: Tensor) -> Seen:
        """The state and its change since the last evaluation."""
        assert self._now is not None and self._map is not None, "seen at the state"
        own = rows.to(self._now.device)
        return self._look(now, rows, self._now[own], self._now[own] - self._map[own])

    def _look(self, now: Moment, rows: Tensor, state: Tensor, other: Tensor) -> Seen:
        remaining = torch.full((len(rows),), now.steps - now.step).to(state.device)
        age, spent = (now.step - self._at[rows]).to(state.device), self._spent[rows].float().to(state.device)
        return look(state, other, now.sigma[0], now.steps, remaining, age, spent)

    def _choose(self, head: HeadName, now: Moment, rows: Tensor, seen: Seen) -> Tensor:
        """(R,) what these samples do, and tells of it."""
        with torch.no_grad():
            if self._dice is None:
                return self._heads.likeliest(head, seen)
            if head == "step":
                action = self._dice.shares(rows, *self._heads.jumps(seen))
            else:
                action = self._dice.choices(rows, self._heads.outputs(head, seen))
        if self._deposit is not None:
            self._deposit(head, Taken(rows, torch.full_like(rows, now.step), seen, action))
        return action

    def _first(self, now: Moment, slopes: Tensor) -> None:
        """The first answer: now it is known how many samples there are."""
        samples = now.samples
        self._next, self._at = (torch.zeros(samples, dtype=torch.long) for _ in range(2))
        self._spent = torch.zeros(samples, dtype=torch.float64)
        self._asked = self._deciding = torch.ones(samples, dtype=torch.bool)
        self._slope = torch.zeros_like(slopes[0])
        assert self._now is not None, "seen at the state"
        if len(self._now) < samples:  # DiT steps both halves of a guided call
            self._now = self._now.repeat(samples // len(self._now), 1, 1, 1)
        self._map = self._now

    def _account(self, now: Moment, slope: Tensor) -> None:
        """Keeps the slopes (B, *S) that hold, and lets those who decided jump."""
        asked, deciding = self._asked, self._deciding
        assert asked is not None and deciding is not None and self._slope is not None, "made in the first call"
        assert self._map is not None and self._now is not None, "seen at the state"
        self._slope = slope.detach().clone() if bool(asked.all()) else slope.detach()
        self._map = torch.where(_beside(asked, self._map[None])[0], self._now, self._map)
        self._at = torch.where(asked, now.step, self._at)
        self._computed.append(asked)
        self._spent = self._spent + torch.where(asked, self._costs(len(asked)), 0.0)
        layout, remaining = self._heads.layout, now.steps - now.step
        rows = deciding.nonzero().flatten()
        ahead = torch.full((len(rows),), min(layout.jump, remaining))
        if "step" in layout.heads and remaining > 1 and len(rows):
            own = rows.to(slope.device)
            seen = self._look(now, rows, self._now[own], as_map(slope[own], layout.size))
            ahead = jump_of(self._choose("step", now, rows, seen).cpu(), torch.full_like(rows, remaining))
        self._next = self._next.index_copy(0, rows, now.step + ahead)

    def _share(self, rows: Tensor | None) -> float:
        """Mean cost of a call of these samples, or of all, in dense ones."""
        if self._levels is None:
            return 1.0
        costs = self._costs(len(self._levels))
        return float((costs if rows is None else costs[rows]).mean()) if rows is None or len(rows) else 1.0

    def _costs(self, samples: int) -> Tensor:
        """(B,) of a call of each sample."""
        if self._levels is None:
            return torch.ones(samples, dtype=torch.float64)
        costs = torch.tensor([1.0, *self._heads.layout.costs], dtype=torch.float64)
        return costs[self._levels[-samples:]]


def _beside(mask: Tensor, x: Tensor) -> Tensor:
    """(B,) ready to choose among (K, B, *S)."""
    return mask.to(x.device).reshape(1, -1, *[1] * (x.ndim - 2))


def _states(state: object, now: Moment) -> Tensor:
    """(B, *S) what the network is given at the solver's states, out of all rows of a call: the last copy's."""
    rows = torch.stack(state) if isinstance(state, list) else state
    assert isinstance(rows, Tensor), "a network's state is a tensor, or a list of them"
    return rows.unflatten(0, (now.copies, now.samples, now.points))[-1, :, 0]
