"""The learned rule: an anchor, a fan of parallel look-ahead points, memory of earlier slopes, one or two calls a step.

One rule serves every learned family. With look-ahead weights of Adams-Bashforth it is EPD (order 1) and EPD-Plugin
(arXiv 2507.14797); without a fan and with learned memory it is the S4S / BNS family; DPM-Solver-2, AMED and iPNDM
are special cases.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .rules import analytic_slope
from .walk import Ask, History, Rule, Steps, expand


@dataclass(frozen=True)
class Used:
    """Which weights of one step can be non-zero; the others are skipped.

    Args:
        anchor: whether the update weighs the anchor slope.
        memory: indices of the memory columns that the update weighs.
        lookahead: per fan point, indices into [anchor, memory] that point to it; empty: no such point.
    """

    anchor: bool
    memory: tuple[int, ...]
    lookahead: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Coefficients:
    """A table's numbers as float64 tensors, differentiable; every one may end in a sample axis B.

    N steps, J fan points, m remembered steps. A step's slopes are kept as 1 + J slots (anchor, fan points), so memory
    has M = m (1 + J) columns, newest step first. Where one field has a sample axis, construction gives it to all but
    the sigmas, so that each sample of a batch may have a table of its own and one network call serves them all.

    Args:
        sigmas: (N+1,).
        nodes: (N, J), where in log sigma each fan point sits: sigma'^r sigma^(1-r).
        weights: (N, J) of the fan slopes in the update (slope scale included).
        sigma_scale: (N, J), the network gets this times the point's sigma as its noise level.
        anchor: (N,) weight of the anchor slope in the update.
        memory: (N, M) weights of remembered slopes in the update.
        lookahead: (N, J, 1 + M) weights of [anchor, memory] in the direction to each fan point.
        calls: per step, 2 (anchor, then fan) or 1 (anchor and fan together).
        afs: analytic first slope; in a two-call step it replaces the anchor, in a one-call step it is the first memory.
        used: per step, which of [update memory (M,), look-ahead of each point (J, 1 + M)] can be non-zero.

    Raises:
        ValueError: for a field of another shape, or two numbers of samples.
    """

    sigmas: Tensor
    nodes: Tensor
    weights: Tensor
    sigma_scale: Tensor
    anchor: Tensor
    memory: Tensor
    lookahead: Tensor
    calls: tuple[int, ...]
    afs: bool
    used: tuple[Used, ...]

    def __post_init__(self) -> None:
        n, j, m = len(self.calls), *self.nodes.shape[1:2], *self.memory.shape[1:2]
        shapes = {"sigmas": (n + 1,), "nodes": (n, j), "weights": (n, j), "sigma_scale": (n, j)}
        shapes |= {"anchor": (n,), "memory": (n, m), "lookahead": (n, j, 1 + m)}
        samples: dict[str, int] = {}
        for name, shape in shapes.items():
            own = tuple(getattr(self, name).shape)
            if own[: len(shape)] != shape or len(own) > len(shape) + 1:
                raise ValueError(f"{name} has shape {own}, needed {shape}, or {shape} with a sample axis behind it")
            samples |= {name: own[-1]} if len(own) > len(shape) else {}
        if len(set(samples.values())) > 1:
            raise ValueError(f"the sample axes differ, {samples}: every one must be as long as the batch")
        if not samples:
            return
        (count,) = set(samples.values())
        for name, shape in shapes.items():
            if name != "sigmas" and name not in samples:
                object.__setattr__(self, name, getattr(self, name)[..., None].expand(*shape, count))

    def to(self, device: torch.device) -> Coefficients:
        """The same numbers on another device."""
        names = ("sigmas", "nodes", "weights", "sigma_scale", "anchor", "memory", "lookahead")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class _WeightedSum(torch.autograd.Function):
    """The sum of `combine` with a gradient of a few operations, where autograd's own takes six for each term.

    Training goes through dozens of sums of small tensors: what they cost is how many operations they are.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, used: Sequence[int], *terms: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weights, *terms)
        ctx.used = tuple(used)
        return _weighted_sum(weights, used, terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *terms = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        where = _index(ctx.used, weights.device)  # type: ignore[attr-defined]
        each = torch.stack(terms).flatten(1 if weights.ndim == 1 else 2)  # (K, B d), or (K, B, d)
        if weights.ndim == 1:
            products = each @ gradient.flatten()
        else:
            products = (each * gradient.flatten(1)).sum(2)
        pulled = torch.zeros_like(weights).index_copy_(0, where, products.to(weights))
        column = weights.index_select(0, where).to(gradient)
        column = column.reshape(*column.shape, *[1] * (gradient.ndim + 1 - column.ndim))
        return pulled, None, *(column * gradient).unbind()


@functools.lru_cache(maxsize=4096)
def _index(used: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(used, device=device)


def _weighted_sum(weights: Tensor, used: Sequence[int], terms: Sequence[Tensor]) -> Tensor:
    columns = weights.unbind()
    total = expand(columns[used[0]], terms[0]) * terms[0]
    for k, term in zip(used[1:], terms[1:], strict=True):
        total = total + expand(columns[k], term) * term
    return total


def combine(weights: Tensor, terms: Sequence[Tensor], used: Sequence[int]) -> Tensor:
    """sum_k weights[k] terms[k] over the used k; element by element, so that a sample's bits ignore its batch.

    Args:
        weights: (T,), or (T, B) when each sample has its own.
        terms: T of (B, *S).
        used: indices into both.
    """
    inside = [terms[k] for k in used]
    if weights.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _WeightedSum.apply(weights, used, *inside))
    return _weighted_sum(weights, used, inside)


def parallel(c: Coefficients) -> Rule:
    """The rule of a learned table. Reference: arXiv 2507.14797, Eqs. 8-10 (anchor = 0, no memory).

    Two-call step n: d = slope(x, sigma); p_j = x + (tau_j - sigma) sum lookahead[n, j] [d, memory];
    mean = anchor[n] d + sum_j weights[n, j] slope(p_j, tau_j) + sum memory[n] memory.
    """
    columns, width = c.memory.shape[1], c.nodes.shape[1]
    per_device: dict[torch.device, list[_Step]] = {}

    def steps_on(device: torch.device) -> list[_Step]:
        """The steps' numbers where the noise levels are, moved there once."""
        if device not in per_device:
            per_device[device] = _steps(c if c.nodes.device == device else c.to(device))
        return per_device[device]

    def rule(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        _require_fit(c, x, n, history)
        step = steps_on(sigma.device)[n]
        fan, analytic = step.fan, c.afs and n == 0
        if c.calls[n] == 2:
            anchor = analytic_slope(x, sigma) if analytic else (yield Ask(x[None], sigma[None]))[0]
            fan_slopes = (yield fan.ask(x, sigma, sigma_next, (anchor, *history))).unbind()
        else:
            if analytic:
                history = (analytic_slope(x, sigma),) * min(columns, 1 + width)
            # Slot 0, the anchor, is not known yet, nor used.
            ask = fan.ask(x, sigma, sigma_next, (x, *history), here=True)
            anchor, *fan_slopes = (yield ask).unbind()
        evaluated = dict(zip(fan.slots, fan_slopes, strict=True))
        # A point that was not evaluated leaves its slot unused; the anchor only fills the place.
        slopes = (anchor, *(evaluated.get(j, anchor) for j in range(width)), *history)
        return combine(step.update, slopes, step.terms), slopes[:columns]

    return rule


def _require_fit(c: Coefficients, x: Tensor, n: int, history: History) -> None:
    """Step n of these coefficients, from this state and these remembered slopes, is one that they have."""
    if n >= len(c.used):
        raise ValueError(f"the table has {len(c.used)} steps, step {n} is asked for: drive it with table.sigmas")
    if c.nodes.ndim == 3 and c.nodes.shape[2] != len(x):
        raise ValueError(
            f"the coefficients are those of {c.nodes.shape[2]} samples, the state has {len(x)}: every sample needs its "
            "own, or all the same ones, without a sample axis"
        )
    used = c.used[n]
    if n and not history and (used.memory or any(max(inside, default=0) for inside in used.lookahead)):
        raise ValueError(
            f"the walk begins at step {n} and remembers no slopes, which the table weighs: begin at 0, or give history"
        )


@dataclass(frozen=True)
class _Step:
    """What is known of one step before the state is.

    Args:
        fan: its look-ahead points.
        update: (1 + J + M,) or (1 + J + M, B), weights of [anchor, fan, memory] in the mean slope.
        terms: which of them are used.
    """

    fan: _Fan
    update: Tensor
    terms: list[int]


def _steps(c: Coefficients) -> list[_Step]:
    width = c.nodes.shape[1]
    updates = torch.cat([c.anchor[:, None], c.weights, c.memory], 1).unbind()
    steps = []
    for used, update, *rows in zip(c.used, updates, c.nodes, 1 - c.nodes, c.sigma_scale, c.lookahead, strict=True):
        fan = _Fan.of(used, *rows)
        terms = [0] * used.anchor + [1 + j for j in fan.slots] + [1 + width + k for k in used.memory]
        steps.append(_Step(fan, update, terms))
    return steps


@dataclass(frozen=True)
class _Fan:
    """The look-ahead points of one step: what is known of them before the state is.

    Args:
        slots: which of the J points are evaluated, F of them.
        inside: per evaluated point, which of [anchor, memory] point to it.
        nodes, others: (F,) or (F, B), r and 1 - r.
        scale: like nodes, the sigma scale.
        lookahead: (1 + M, F) or (1 + M, F, B).
    """

    slots: list[int]
    inside: list[tuple[int, ...]]
    nodes: Tensor
    others: Tensor
    scale: Tensor
    lookahead: Tensor

    @classmethod
    def of(cls, used: Used, *rows: Tensor) -> _Fan:
        slots = [j for j, inside in enumerate(used.lookahead) if inside]
        *like_nodes, lookahead = rows if len(slots) == len(used.lookahead) else [row[slots] for row in rows]
        return cls(slots, [used.lookahead[j] for j in slots], *like_nodes, lookahead.transpose(0, 1))

    def ask(
        self, x: Tensor, sigma: Tensor, sigma_next: Tensor, directions: Sequence[Tensor], here: bool = False
    ) -> Ask:
        """The question for these points; with `here` for the state itself, too, first."""
        if not self.slots:
            return Ask(x[None], sigma[None])
        fan = self.per_sample() if sigma.ndim > self.nodes.ndim - 1 else self
        mids = sigma_next**fan.nodes * sigma**fan.others
        weights = ((mids - sigma) * fan.lookahead).unbind(1)
        points = [x + combine(w, directions, inside) for w, inside in zip(weights, fan.inside, strict=True)]
        scale = fan.scale.expand_as(mids)
        if here:
            points.insert(0, x)
            mids = torch.cat([sigma.expand(mids.shape[1:])[None], mids])
            scale = torch.cat([torch.ones_like(scale[:1]), scale])
        return Ask(torch.stack(points), mids, scale)

    def per_sample(self) -> _Fan:
        """The same numbers for every sample, beside noise levels that each sample has of its own."""
        nodes, others, scale, lookahead = (t[..., None] for t in (self.nodes, self.others, self.scale, self.lookahead))
        return _Fan(self.slots, self.inside, nodes, others, scale, lookahead)


def availability(num_steps: int, width: int, columns: int, calls: Sequence[int], afs: bool) -> tuple[Used, ...]:
    """Per step, which weights have something to weigh: early steps have little memory, and a one-call first step
    without AFS has no direction to look ahead along, so it evaluates its anchor only.

    Args:
        width: J, fan points a step.
        columns: M, memory columns.
    """
    out: list[Used] = []
    fans: list[bool] = []  # newest last: was the fan of that (pseudo-)step evaluated?
    if afs and calls[0] == 1:
        fans.append(False)
    for n in range(num_steps):
        memory = []
        for k, evaluated in enumerate(reversed(fans)):
            memory += [k * (1 + width) + s for s in range(1 + width) if s == 0 or evaluated]
        memory = [k for k in memory if k < columns]
        inside = [0] * (calls[n] == 2) + [1 + k for k in memory]
        out.append(Used(True, tuple(memory), (tuple(inside),) * width))
        fans.append(bool(inside) and width > 0)
    return tuple(out)
