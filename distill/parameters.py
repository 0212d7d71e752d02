"""What is learned of a table: a vector of unconstrained numbers whose image is always a valid table."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..solvers.availability import Used
from ..solvers.parallel import Coefficients
from ..solvers.table import Provenance, Table
from .config import GUIDANCE
from .free import but_first, fan_points, first, free_lookahead, free_update, on_simplex, sum_to_one
from .scales import SLOW, inverse_scale, inverse_wide_scale, narrow_scale, wide_scale

MARGIN = 1e-3  # nodes stay this far inside (0, 1), where a sigmoid may saturate
STEEPEST = 25.0  # log ratio of the longest step to the shortest: sigmas never meet
SIMPLEX_FLOOR = 1e-6  # keeps a published zero weight learnable: a softmax at -inf has no gradient
UPDATE = ("anchor", "weights", "memory")  # the update weights of a step, which sum to one together


@dataclass(frozen=True)
class Parameters:
    """A table and which of its numbers are learned, as one vector (P,).

    sigmas: log-sigma increments by softmax between fixed ends. nodes: sigmoid. scales: 1 + SCALE tanh(p), or
    exp(WIDE tanh(p)) where the anchor's is learned, and for factors of the guidance. Weights on the simplex: softmax.
    Weights with anchor and memory, and look-ahead weights: free but for one of each combination, which makes the sum
    one where the table is to be consistent.

    The coefficients have no redundant directions, but for weights beside slope scales. The solution has: where all
    weights and scales are free, another inner sigma or node is a rescaling of weights and told levels. They are kept,
    since the scales are bounded and the noise levels must be able to go further.

    Args:
        base: the table that the vector `start` stands for; everything that is not learned stays as it is there.
        learn: names of Table fields.
        raw: unconstrained values of the learned fields.
        active: which entries of each are in the vector.
    """

    base: Table
    learn: frozenset[str]
    raw: dict[str, Tensor]
    active: dict[str, Tensor]

    @classmethod
    def of(cls, table: Table, learn: Collection[str]) -> Parameters:
        """Parameters whose start is `table`."""
        names = frozenset(learn)
        values = {name: _raw(table, name, names) for name in sorted(names)}
        active = {name: _active(table, name, names) for name in values}
        return cls(table, names, values, active)

    @property
    def start(self) -> Tensor:
        """The vector (P,) of the table itself."""
        parts = [self.raw[name][self.active[name]] for name in self.raw]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    @property
    def names(self) -> list[str]:
        """What each entry of the vector belongs to, such as `nodes/2/0`."""
        out = []
        for name, mask in self.active.items():
            out += ["/".join([name, *(str(int(i)) for i in index)]) for index in mask.nonzero()]
        return out

    def coefficients(self, vector: Tensor) -> Coefficients:
        """The coefficients that the rule is driven with, differentiable in the vector (P,)."""
        raw, fixed = self._placed(vector), self._fixed
        weights, anchor, memory = self._update(raw)
        scale = narrow_scale(raw["slope_scale"]) if "slope_scale" in raw else self._slope_scale
        return Coefficients(
            sigmas=self._sigmas(raw["sigmas"]) if "sigmas" in raw else fixed.sigmas,
            nodes=MARGIN + (1 - 2 * MARGIN) * raw["nodes"].sigmoid() if "nodes" in raw else fixed.nodes,
            weights=weights * scale,
            sigma_scale=self._told(raw["sigma_scale"]) if "sigma_scale" in raw else fixed.sigma_scale,
            anchor_scale=self._told(raw["anchor_scale"]) if "anchor_scale" in raw else fixed.anchor_scale,
            anchor=anchor,
            memory=memory,
            lookahead=self._summed(raw["lookahead"], self._first_lookahead) if "lookahead" in raw else fixed.lookahead,
            calls=fixed.calls,
            afs=fixed.afs,
            used=self._used,
            guidance_scale=wide_scale(raw["guidance_scale"]) if "guidance_scale" in raw else fixed.guidance_scale,
            anchor_guidance=wide_scale(raw["anchor_guidance"]) if "anchor_guidance" in raw else fixed.anchor_guidance,
        )

    def table(self, vector: Tensor, provenance: Provenance) -> Table:
        """The Table of a vector, validated."""
        c = self.coefficients(vector.detach())
        base, raw = self.base, self._placed(vector.detach())
        scale = narrow_scale(raw["slope_scale"]).numpy() if "slope_scale" in raw else base.slope_scale
        by_order = "lookahead" not in self.learn and base.lookahead is None
        own = base.memory.shape[1]
        return Table(
            sigmas=c.sigmas.numpy(),
            nodes=c.nodes.numpy(),
            weights=c.weights.numpy() / scale,
            slope_scale=scale,
            sigma_scale=c.sigma_scale.numpy(),
            anchor_scale=c.anchor_scale.numpy(),
            order=base.order if by_order else 1,
            afs=base.afs,
            anchor=c.anchor.numpy(),
            memory=c.memory.numpy()[:, :own] if by_order and "memory" not in self.learn else c.memory.numpy(),
            lookahead=None if by_order else c.lookahead.numpy(),
            calls=base.calls,
            consistent=base.consistent,
            guidance_scale=None if c.guidance_scale is None else c.guidance_scale.numpy(),
            anchor_guidance=None if c.anchor_guidance is None else c.anchor_guidance.numpy(),
            provenance=provenance,
        )

    def _placed(self, vector: Tensor) -> dict[str, Tensor]:
        """The vector's entries at their places in the unconstrained fields."""
        out, start = {}, 0
        for name, raw in self.raw.items():
            out[name] = raw.masked_scatter(self.active[name], vector[start : start + self._counts[name]])
            start += self._counts[name]
        return out

    def _sigmas(self, raw: Tensor) -> Tensor:
        first, last = self._fixed.sigmas[[0, -1]].split(1)
        raw = SLOW * raw
        fractions = torch.maximum(raw, raw.amax() - STEEPEST).softmax(0).cumsum(0)[:-1]
        inner = (first.log() + (last.log() - first.log()) * fractions).exp()
        return torch.cat([first, inner, last])  # the ends are exact, not exp(log(...))

    def _update(self, raw: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Fan, anchor and memory weights of the update."""
        if self._simplex:
            # A first step without a fan is an Euler step: its weights stay 0.
            return raw["weights"].softmax(1) * self._evaluated, self._fixed.anchor, self._fixed.memory
        n, width = self.base.num_steps, self.base.num_nodes
        row = torch.cat([raw.get(k, self._update_parts[k]).reshape(n, -1) for k in UPDATE], 1)
        if self.learn & set(UPDATE):
            row = self._summed(row, self._first_update)
        anchor, weights, memory = row.split([1, width, row.shape[1] - 1 - width], 1)
        return weights, anchor[:, 0], memory

    def _told(self, raw: Tensor) -> Tensor:
        return wide_scale(raw) if self._wide else narrow_scale(raw)

    def _summed(self, rows: Tensor, first: Tensor) -> Tensor:
        return sum_to_one(rows, first) if self.base.consistent else rows

    # What does not depend on the vector; every update asks for it.

    @functools.cached_property
    def _counts(self) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in self.active.items()}

    @functools.cached_property
    def _fixed(self) -> Coefficients:
        return self.base.coefficients()

    @functools.cached_property
    def _wide(self) -> bool:
        return "anchor_scale" in self.learn

    @functools.cached_property
    def _slope_scale(self) -> Tensor:
        return torch.tensor(self.base.slope_scale)

    @functools.cached_property
    def _simplex(self) -> bool:
        return on_simplex(self.base, self.learn)

    @functools.cached_property
    def _evaluated(self) -> Tensor:
        return fan_points(self.base)

    @functools.cached_property
    def _update_parts(self) -> dict[str, Tensor]:
        return {name: _update_part(self.base, name) for name in UPDATE}

    @functools.cached_property
    def _first_update(self) -> Tensor:
        return first(free_update(self.base, self.learn))

    @functools.cached_property
    def _first_lookahead(self) -> Tensor:
        return first(free_lookahead(self.base))

    @functools.cached_property
    def _used(self) -> tuple[Used, ...]:
        """Fixed parts keep the table's own zeros; learned parts may use everything that is available."""
        return tuple(
            Used(
                can.anchor if "anchor" in self.learn else own.anchor,
                can.memory if "memory" in self.learn else own.memory,
                can.lookahead if "lookahead" in self.learn else own.lookahead,
            )
            for own, can in zip(self.base.used, self.base.available, strict=True)
        )


def _memory(table: Table) -> np.ndarray:
    own = table.memory
    return np.pad(own, ((0, 0), (0, table.columns - own.shape[1])))


def _update_part(table: Table, name: str) -> Tensor:
    return torch.tensor(_memory(table) if name == "memory" else getattr(table, name))


def _raw(table: Table, name: str, learn: frozenset[str]) -> Tensor:
    """The unconstrained values whose image is the table's field."""
    if name == "sigmas":
        return torch.tensor(table.sigmas).log().diff().neg().log() / SLOW
    if name == "nodes":
        return ((torch.tensor(table.nodes) - MARGIN) / (1 - 2 * MARGIN)).clamp(1e-6, 1 - 1e-6).logit()
    if name in GUIDANCE or (name in ("sigma_scale", "anchor_scale") and "anchor_scale" in learn):
        return inverse_wide_scale(torch.tensor(getattr(table, name)))
    if name in ("slope_scale", "sigma_scale"):
        return inverse_scale(torch.tensor(getattr(table, name)))
    if name == "lookahead":
        return torch.tensor(table.effective_lookahead)
    if name == "weights" and on_simplex(table, learn):
        return torch.tensor(table.weights).clamp_min(SIMPLEX_FLOOR).log()
    return _update_part(table, name)


def _active(table: Table, name: str, learn: frozenset[str]) -> Tensor:
    """Which unconstrained entries are in the vector: those that matter, but one of each sum."""
    fan = fan_points(table)
    if name == "sigmas":
        return torch.arange(table.num_steps) > 0  # a softmax knows differences only
    if name in ("nodes", "slope_scale", "sigma_scale", "guidance_scale"):
        return fan
    if name == "weights" and on_simplex(table, learn):
        return fan & (torch.arange(table.num_nodes) > 0)
    if name in ("anchor_scale", "anchor_guidance"):
        return torch.arange(table.num_steps) >= table.moves_first_call
    if name == "lookahead":
        free = free_lookahead(table)
        return but_first(free) if table.consistent else free
    update = free_update(table, learn)
    update = but_first(update) if table.consistent else update
    anchor, weights, memory = update.split([1, table.num_nodes, update.shape[1] - 1 - table.num_nodes], 1)
    return {"anchor": anchor[:, 0], "weights": weights, "memory": memory}[name]
