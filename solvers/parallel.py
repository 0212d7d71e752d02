"""The learned rule: an anchor, a fan of parallel look-ahead points, memory of earlier slopes, up to two calls a step.

One rule serves every learned family. With look-ahead weights of Adams-Bashforth it is EPD (order 1) and EPD-Plugin
(arXiv 2507.14797); without a fan and with learned memory it is the S4S / BNS family; DPM-Solver-2, AMED and iPNDM
are special cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .availability import Used
from .combine import combine
from .rules import analytic_slope
from .walk import Ask, History, Rule, Steps


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
        anchor_scale: (N,), the same of the anchor.
        anchor: (N,) weight of the anchor slope in the update.
        memory: (N, M) weights of remembered slopes in the update.
        lookahead: (N, J, 1 + M) weights of [anchor, memory] in the direction to each fan point.
        calls: per step, 2 (anchor, then fan), 1 (anchor and fan together) or 0 (analytic slope, the first step only).
        afs: analytic first slope; in a two-call step it replaces the anchor, in a one-call step it is the first memory.
        used: per step, which of [update memory (M,), look-ahead of each point (J, 1 + M)] can be non-zero.
        guidance_scale: (N, J), factors of the model's guidance scale at each fan point; none with the next: all 1.
        anchor_guidance: (N,), the same of the anchor.

    Raises:
        ValueError: for a field of another shape, or two numbers of samples.
    """

    sigmas: Tensor
    nodes: Tensor
    weights: Tensor
    sigma_scale: Tensor
    anchor_scale: Tensor
    anchor: Tensor
    memory: Tensor
    lookahead: Tensor
    calls: tuple[int, ...]
    afs: bool
    used: tuple[Used, ...]
    guidance_scale: Tensor | None = None
    anchor_guidance: Tensor | None = None

    def __post_init__(self) -> None:
        n, j, m = len(self.calls), *self.nodes.shape[1:2], *self.memory.shape[1:2]
        shapes = {"sigmas": (n + 1,), "nodes": (n, j), "weights": (n, j), "sigma_scale": (n, j)}
        shapes |= {"anchor_scale": (n,), "anchor": (n,), "memory": (n, m), "lookahead": (n, j, 1 + m)}
        guidance = {"guidance_scale": (n, j), "anchor_guidance": (n,)}
        if any(getattr(self, name) is not None for name in guidance):
            shapes |= guidance
            for name in guidance:
                if getattr(self, name) is None:
                    object.__setattr__(self, name, self.sigmas.new_ones(guidance[name]))
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
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})


def parallel(c: Coefficients) -> Rule:
    """The rule of a learned table. Reference: arXiv 2507.14797, Eqs. 8-10 (anchor = 0, no memory).

    Two-call step n: d = slope(x, sigma); p_j = x + (tau_j - sigma) sum lookahead[n, j] [d, memory];
    mean = anchor[n] d + sum_j weights[n, j] slope(p_j, tau_j) + sum memory[n] memory. In a one-call step d is none of
    the directions; in a first step of no call it is the analytic slope, and there are no points.
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
        fan, calls, analytic = step.fan, c.calls[n], c.afs and n == 0
        fan_slopes: Sequence[Tensor] = ()
        if calls == 0:
            anchor = analytic_slope(x, sigma)
        elif calls == 2:
            anchor = analytic_slope(x, sigma) if analytic else (yield step.anchor(x, sigma))[0]
            fan_slopes = (yield step.further(x, sigma, sigma_next, (anchor, *history))).unbind()
        else:
            if analytic:
                history = (analytic_slope(x, sigma),) * min(columns, 1 + width)
            # Slot 0, the anchor, is not known yet, nor used.
            ask = step.everything(x, sigma, sigma_next, (x, *history)) if fan.slots else step.anchor(x, sigma)
            anchor, *fan_slopes = (yield ask).unbind()
        evaluated = dict(zip(fan.slots, fan_slopes, strict=True))
        # A point that was not evaluated leaves its slot unused; the anchor only fills the place.
        slopes = (anchor, *(evaluated.get(j, anchor) for j in range(width)), *history)
        return combine(step.update, slopes, step.terms, step.columns), slopes[:columns]

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
    slopes = c.used[n].remembered
    if n and slopes > len(history):
        begun = "" if history else f"the walk begins at step {n} and "
        raise ValueError(
            f"{begun}remembers {len(history) or 'no'} slopes at step {n}, where the table weighs the last {slopes}: "
            "begin at 0, or give history"
        )


@dataclass(frozen=True)
class _Told:
    """What the network is told at the points of a question beside their noise levels.

    Args:
        scale: (K,) or (K, B), the sigma scale.
        guidance: the same, factors of the guidance; none: 1.
    """

    scale: Tensor
    guidance: Tensor | None

    def ask(self, points: Tensor, sigma: Tensor) -> Ask:
        """The question for points (K, B, *S) at sigma, (K,) or (K, B)."""
        if sigma.ndim == self.scale.ndim:
            return Ask(points, sigma, self.scale, guidance=self.guidance)
        sigma, scale = torch.broadcast_tensors(_per_sample(sigma), _per_sample(self.scale))
        guidance = None if self.guidance is None else _per_sample(self.guidance).expand_as(sigma)
        return Ask(points, sigma, scale, guidance=guidance)

    def __add__(self, other: _Told) -> _Told:
        if self.guidance is None or other.guidance is None:
            return _Told(torch.cat([self.scale, other.scale]), None)
        return _Told(torch.cat([self.scale, other.scale]), torch.cat([self.guidance, other.guidance]))


def _per_sample(values: Tensor) -> Tensor:
    """(K, B), or (K, 1) of (K,)."""
    return values if values.ndim == 2 else values[:, None]


@dataclass(frozen=True)
class _Step:
    """What is known of one step before the state is.

    Args:
        fan: its look-ahead points.
        own, ahead, both: what the network is told at the state, at the fan, and where one question is of both.
        update: (1 + J + M,) or (1 + J + M, B), weights of [anchor, fan, memory] in the mean slope.
        columns: the same, one by one; none where gradients go through them.
        terms: which of them are used.
    """

    fan: _Fan
    own: _Told
    ahead: _Told
    both: _Told
    update: Tensor
    columns: Sequence[Tensor] | None
    terms: list[int]

    def anchor(self, x: Tensor, sigma: Tensor) -> Ask:
        """The question for the state itself."""
        return self.own.ask(x[None], sigma[None])

    def further(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, directions: Sequence[Tensor]) -> Ask:
        """The question for the fan."""
        points, levels = self.fan.points(x, sigma, sigma_next, directions)
        return self.ahead.ask(torch.stack(points), levels)

    def everything(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, directions: Sequence[Tensor]) -> Ask:
        """The question for the state and the fan."""
        points, levels = self.fan.points(x, sigma, sigma_next, directions)
        return self.both.ask(torch.stack([x, *points]), torch.cat([sigma.expand(1, *levels.shape[1:]), levels]))


def _steps(c: Coefficients) -> list[_Step]:
    width = c.nodes.shape[1]
    updates = torch.cat([c.anchor[:, None], c.weights, c.memory], 1).unbind()
    told = c.anchor_scale.split(1), _each(c.anchor_guidance, len(c.used)), _each(c.guidance_scale, len(c.used))
    fans = c.sigma_scale, c.lookahead, c.nodes, 1 - c.nodes
    steps = []
    for used, update, scale, factor, factors, *fan in zip(c.used, updates, *told, *fans, strict=True):
        slots = [j for j, inside in enumerate(used.lookahead) if inside]
        if len(slots) < width:
            factors, fan = None if factors is None else factors[slots], [row[slots] for row in fan]
        scales, lookahead, nodes, others = fan
        own, ahead = _Told(scale, None if factor is None else factor[None]), _Told(scales, factors)
        points = _Fan(slots, [used.lookahead[j] for j in slots], nodes, others, lookahead.transpose(0, 1))
        terms = [0] * used.anchor + [1 + j for j in slots] + [1 + width + k for k in used.memory]
        columns = None if update.requires_grad else update.unbind()
        steps.append(_Step(points, own, ahead, own + ahead, update, columns, terms))
    return steps


def _each(rows: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if rows is None else rows.unbind()


@dataclass(frozen=True)
class _Fan:
    """The look-ahead points of one step: what is known of them before the state is.

    Args:
        slots: which of the J points are evaluated, F of them.
        inside: per evaluated point, which of [anchor, memory] point to it.
        nodes, others: (F,) or (F, B), r and 1 - r.
        lookahead: (1 + M, F) or (1 + M, F, B).
    """

    slots: list[int]
    inside: list[tuple[int, ...]]
    nodes: Tensor
    others: Tensor
    lookahead: Tensor

    def points(
        self, x: Tensor, sigma: Tensor, sigma_next: Tensor, directions: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """F points (B, *S) and their noise levels, (F,) or (F, B)."""
        nodes, others, lookahead = self.nodes, self.others, self.lookahead
        if sigma.ndim > nodes.ndim - 1:  # each sample has noise levels of its own, and the same numbers as the others
            nodes, others, lookahead = nodes[..., None], others[..., None], lookahead[..., None]
        levels = sigma_next**nodes * sigma**others
        weights = ((levels - sigma) * lookahead).unbind(1)
        return [x + combine(w, directions, inside) for w, inside in zip(weights, self.inside, strict=True)], levels
