"""The Table: the learned numbers of a rule, frozen, checked at construction, JSON on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..formats.files import read_text, write_atomically
from .availability import Used, availability
from .parallel import Coefficients, parallel
from .provenance import Provenance
from .rules import uniform_adams_bashforth
from .table_checks import Array, TableError, check, check_sigmas, checked_calls, field_of, scale_of
from .walk import Rule


@dataclass(frozen=True, eq=False)
class Table:
    r"""The learned numbers of a parallel solver with N steps and J fan points a step.

    x' = x + (sigma' - sigma) (anchor d + sum_j weights_j slope_scale_j d_j + sum memory past), see `parallel`.
    Reference: arXiv 2507.14797, Eqs. 8-10, with anchor, memory and learned look-ahead added.

    Args:
        sigmas: (N+1,) strictly decreasing, > 0.
        nodes: (N, J) inside (0, 1): fan point j sits at sigma'^r sigma^(1-r). Their order within a row is free.
        weights: (N, J). On the simplex where neither anchor nor memory is used, else all weights of a step sum to one.
        slope_scale: (N, J) > 0, multiplies a fan slope; default 1.
        sigma_scale: (N, J) > 0, the network gets sigma_scale * sigma as its noise level; default 1.
        anchor_scale: (N,) > 0, the same for the anchor, and 1 where the first slope is analytic; default 1.
        guidance_scale: (N, J) > 0, a factor f of the model's own guidance g at a fan point, D = D_u + f g (D_c - D_u):
            at no evaluation more, as a guided model has both D; default 1. That it should depend on the noise level:
            arXiv 2404.07724.
        anchor_guidance: (N,) > 0, the same for the anchor, and 1 where the first slope is analytic; default 1.
        order: 1 to 4, of the Adams-Bashforth look-ahead over anchor slopes: 1 is EPD, 3 the published plugins.
        afs: analytic first slope x / sqrt(1 + sigma^2).
        anchor: (N,) weight of the anchor slope; default 0.
        memory: (N, M) weights of the slopes of the last m steps, M = m (1 + J), newest step first, each step as
            [anchor, fan 1..J]; default none. Entries that no earlier call fills must be 0.
        lookahead: (N, J, 1 + M) weights of [anchor, memory] in the direction to each fan point, summing to one;
            default: Adams-Bashforth of `order`.
        calls: 2 (anchor, then fan) or 1 (anchor and fan in one call), one number or one per step; the first step may
            take 0: along the analytic slope x / sqrt(1 + sigma^2), without a fan.
        consistent: the weights of every update and look-ahead sum to one; False: they are free, and a point whose
            look-ahead is 0 throughout is not evaluated.
        provenance: what it was learned for and how.

    Raises:
        TableError: naming field, value, bound and remedy.
    """

    sigmas: Array
    nodes: Array
    weights: Array
    slope_scale: Array
    sigma_scale: Array
    anchor_scale: Array
    guidance_scale: Array
    anchor_guidance: Array
    order: int
    afs: bool
    anchor: Array
    memory: Array
    lookahead: Array | None
    calls: tuple[int, ...]
    consistent: bool
    provenance: Provenance

    def __init__(
        self,
        sigmas: ArrayLike,
        nodes: ArrayLike,
        weights: ArrayLike,
        slope_scale: ArrayLike | None = None,
        sigma_scale: ArrayLike | None = None,
        order: int = 1,
        afs: bool = False,
        anchor: ArrayLike | None = None,
        memory: ArrayLike | None = None,
        lookahead: ArrayLike | None = None,
        calls: int | Sequence[int] = 2,
        anchor_scale: ArrayLike | None = None,
        consistent: bool = True,
        provenance: Provenance = Provenance(),  # noqa: B008 - frozen
        guidance_scale: ArrayLike | None = None,
        anchor_guidance: ArrayLike | None = None,
    ) -> None:
        if not isinstance(provenance, Provenance):
            raise TableError(f"provenance is a {type(provenance).__name__}: give epd.Provenance(model=..., ...)")
        sigmas = field_of("sigmas", sigmas, 1)
        check_sigmas(sigmas)
        n = len(sigmas) - 1
        nodes = field_of("nodes", nodes, 2, (n, None))
        shape = (n, nodes.shape[1])
        memory = field_of("memory", np.zeros((n, 0)) if memory is None else memory, 2, (n, None))
        values: dict[str, Any] = {
            "sigmas": sigmas,
            "nodes": nodes,
            "weights": field_of("weights", weights, 2, shape),
            "slope_scale": scale_of("slope_scale", slope_scale, shape),
            "sigma_scale": scale_of("sigma_scale", sigma_scale, shape),
            "anchor_scale": scale_of("anchor_scale", anchor_scale, (n,)),
            "guidance_scale": scale_of("guidance_scale", guidance_scale, shape),
            "anchor_guidance": scale_of("anchor_guidance", anchor_guidance, (n,)),
            "order": order,
            "afs": afs,
            "anchor": field_of("anchor", np.zeros(n) if anchor is None else anchor, 1, (n,)),
            "memory": memory,
            "lookahead": lookahead,
            "calls": checked_calls(calls, n),
            "consistent": consistent,
            "provenance": provenance,
        }
        if lookahead is not None:
            values["lookahead"] = field_of("lookahead", lookahead, 3, (*shape, 1 + memory.shape[1]))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check(self)

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.sigmas) - 1

    @property
    def num_nodes(self) -> int:
        """J, the learned fan points of a step."""
        return self.nodes.shape[1]

    @property
    def num_parallel(self) -> int:
        """K, rows per sample in the widest call: J in two-call steps, J + 1 where the anchor is in the same call."""
        steps = zip(self.used, self.calls, strict=True)
        return max(sum(map(bool, used.lookahead)) + (calls == 1) for used, calls in steps)

    @property
    def moves_first_call(self) -> bool:
        """The first call is not at the initial state, as an analytic slope leads away from it."""
        return self.calls[0] == 0 or (self.afs and self.calls[0] == 2)

    @property
    def depth(self) -> int:
        """Sequential network calls of one sample."""
        return sum(self.calls) - (self.afs and self.calls[0] == 2)

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        fan = sum(1 for u in self.used for inside in u.lookahead if inside)
        return self.num_steps + fan - self.moves_first_call

    @functools.cached_property
    def scales_guidance(self) -> bool:
        """Whether some factor of the guidance is not 1: then only a guided model can be solved with it."""
        return bool((self.guidance_scale != 1).any() or (self.anchor_guidance != 1).any())

    @functools.cached_property
    def columns(self) -> int:
        """M, memory columns that the rule keeps: the table's own, or those of its Adams-Bashforth look-ahead."""
        own = self.memory.shape[1]
        return own if self.lookahead is not None else max(own, (self.order - 1) * (1 + self.num_nodes))

    @functools.cached_property
    def effective_lookahead(self) -> Array:
        """(N, J, 1 + M): the table's own look-ahead, or uniform Adams-Bashforth of `order` over anchor slopes."""
        if self.lookahead is not None:
            return self.lookahead
        out = np.zeros((self.num_steps, self.num_nodes, 1 + self.columns))
        for n, calls in enumerate(self.calls):
            anchors = [0] if calls == 2 else []
            anchors += [1 + k for k in self.available[n].memory if k % (1 + self.num_nodes) == 0]
            anchors = anchors[: self.order]
            if anchors:
                out[n][:, anchors] = uniform_adams_bashforth(len(anchors))
        return out

    @functools.cached_property
    def available(self) -> tuple[Used, ...]:
        """Per step, which weights have a slope to weigh: early steps have few remembered ones."""
        lookahead = None if self.consistent else self.lookahead  # a sum of one is a direction
        return availability(self.num_steps, self.num_nodes, self.columns, self.calls, self.afs, lookahead)

    @functools.cached_property
    def used(self) -> tuple[Used, ...]:
        """Per step, which weights are not zero; the rule skips the others."""
        lookahead, past = self.effective_lookahead, self._padded_memory
        out = []
        for n, u in enumerate(self.available):
            memory = tuple(k for k in u.memory if past[n, k])
            points = tuple(tuple(k for k in inside if lookahead[n, j, k]) for j, inside in enumerate(u.lookahead))
            # An update of zeros alone, which free sums allow, is 0 times the anchor: a sum needs a term.
            out.append(Used(bool(self.anchor[n]) or not (memory or any(points)), memory, points))
        return tuple(out)

    @property
    def _padded_memory(self) -> Array:
        return np.pad(self.memory, ((0, 0), (0, self.columns - self.memory.shape[1])))

    def coefficients(self, device: torch.device | str = "cpu") -> Coefficients:
        """The numbers as float64 tensors on a device; on the network's own device a trajectory needs no transfers."""

        def tensor(array: Array) -> Tensor:
            return torch.tensor(array, dtype=torch.float64, device=device)

        return Coefficients(
            sigmas=tensor(self.sigmas),
            nodes=tensor(self.nodes),
            weights=tensor(self.weights * self.slope_scale),
            sigma_scale=tensor(self.sigma_scale),
            anchor_scale=tensor(self.anchor_scale),
            anchor=tensor(self.anchor),
            memory=tensor(self._padded_memory),
            lookahead=tensor(self.effective_lookahead),
            calls=self.calls,
            afs=self.afs,
            used=self.used,
            guidance_scale=tensor(self.guidance_scale) if self.scales_guidance else None,
            anchor_guidance=tensor(self.anchor_guidance) if self.scales_guidance else None,
        )

    def rule(self, device: torch.device | str = "cpu") -> Rule:
        """The Rule that this table parametrises; its schedule is `table.sigmas`.

        Raises:
            ValueError: by the rule, when it is driven with more sigmas than the table has.
        """
        return parallel(self.coefficients(device))

    def moments(self) -> Array:
        """(N, 2): sum of the update weights, and their first moment; see `moments_of`."""
        from .moments import moments_of

        return moments_of(self)

    def sorted(self) -> Table:
        """The same solver with each row's nodes in increasing order (memory and look-ahead columns follow them)."""
        from .node_order import with_nodes_in_order

        return with_nodes_in_order(self)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers (not of the provenance): what a child table names as its parent."""
        numbers = {k: v for k, v in self.to_dict().items() if k != "provenance"}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made anew: arrays forget there that they cannot be changed."""
        return functools.partial(type(self), **{f.name: getattr(self, f.name) for f in fields(self)}), ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.digest)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, exact: `Table.from_dict(table.to_dict()) == table`."""
        from .table_json import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Table:
        """The inverse of `to_dict`; unknown keys, wrong types and impossible values raise TableError."""
        from .table_json import from_dict

        return from_dict(data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, atomically: the old file stays whole until the new one is. A table that could not be read again,
        because of its size or its provenance, is a TableError.
        """
        from .table_json import proven

        write_atomically(FilePath(path), proven(self).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Reads our JSON, or a published .pkl / .npz (without executing anything in it)."""
        path = FilePath(path)
        if path.suffix in (".pkl", ".npz"):
            from .convert import table_from_published

            return table_from_published(path)
        from .table_json import loads

        return loads(read_text(path, TableError), str(path))
