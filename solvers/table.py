"""The Table: the learned numbers of a rule, frozen, proven at construction, JSON on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .files import read_text, write_atomically
from .loop import Rule
from .parallel import Coefficients, Used, availability, parallel
from .rules import uniform_adams_bashforth

Array = NDArray[np.float64]
TOLERANCE = 1e-5  # on sums that must be one: published tables are float32
MAX_SIZE = 1_000_000  # numbers in one field; far beyond any real table, it bounds what a file can make us allocate


class TableError(ValueError):
    """A table that cannot be: the message names the field, the value, the bound and the remedy."""


@dataclass(frozen=True)
class Provenance:
    """Where a table comes from and what it is for; recorded, never interpreted by the solver.

    Args:
        model: the denoiser's name.
        path: `ve` or `flow`; empty when unknown.
        schedule: name of the schedule that training started from.
        guidance: guidance scale that the table was learned at.
        prediction: what the network predicts (`epsilon`, `v_prediction`, `sample`, `flow`).
        resolution: picture size, pixels.
        seed: training seed.
        config: the training configuration.
        metrics: name -> number, measured after training.
        parent: digest of the table that this one was made from.
        citation: whom to cite.
        notes: anything else, one text; `metadata` keeps an imported file's own entries.
    """

    model: str = ""
    path: str = ""
    schedule: str = ""
    guidance: float | None = None
    prediction: str = ""
    resolution: tuple[int, ...] = ()
    seed: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    parent: str = ""
    citation: str = ""
    notes: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


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
        sigma_scale: (N, J) > 0, the network is told sigma_scale * sigma; default 1.
        order: 1 to 4, of the Adams-Bashforth look-ahead over anchor slopes: 1 is EPD, 3 the published plugins.
        afs: analytic first slope x / sqrt(1 + sigma^2).
        anchor: (N,) weight of the anchor slope; default 0.
        memory: (N, M) weights of the slopes of the last m steps, M = m (1 + J), newest step first, each step as
            [anchor, fan 1..J]; default none. Entries that no earlier step fills must be 0.
        lookahead: (N, J, 1 + M) weights of [anchor, memory] in the direction to each fan point, summing to one;
            default: Adams-Bashforth of `order`.
        calls: 2 (anchor, then fan) or 1 (anchor and fan in one call), one number or one per step.
        provenance: what it was learned for and how.

    Raises:
        TableError: naming field, value, bound and remedy.
    """

    sigmas: ArrayLike
    nodes: ArrayLike
    weights: ArrayLike
    slope_scale: ArrayLike | None = None
    sigma_scale: ArrayLike | None = None
    order: int = 1
    afs: bool = False
    anchor: ArrayLike | None = None
    memory: ArrayLike | None = None
    lookahead: ArrayLike | None = None
    calls: int | Sequence[int] = 2
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if not isinstance(self.provenance, Provenance):
            raise TableError(f"provenance is a {type(self.provenance).__name__}: give epd.Provenance(model=..., ...)")
        sigmas = _array("sigmas", self.sigmas, 1)
        _check_sigmas(sigmas)
        n = len(sigmas) - 1
        nodes = _array("nodes", self.nodes, 2, (n, None))
        width = nodes.shape[1]
        ones, none = np.ones((n, width)), np.zeros((n, 0))
        values: dict[str, Any] = {
            "sigmas": sigmas,
            "nodes": nodes,
            "weights": _array("weights", self.weights, 2, (n, width)),
            "slope_scale": _array("slope_scale", ones if self.slope_scale is None else self.slope_scale, 2, (n, width)),
            "sigma_scale": _array("sigma_scale", ones if self.sigma_scale is None else self.sigma_scale, 2, (n, width)),
            "anchor": _array("anchor", np.zeros(n) if self.anchor is None else self.anchor, 1, (n,)),
            "memory": _array("memory", none if self.memory is None else self.memory, 2, (n, None)),
            "calls": _calls(self.calls, n),
        }
        if self.lookahead is not None:
            values["lookahead"] = _array("lookahead", self.lookahead, 3, (n, width, 1 + values["memory"].shape[1]))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        _check(self)

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.a("sigmas")) - 1

    @property
    def num_nodes(self) -> int:
        """J, the learned fan points of a step."""
        return self.a("nodes").shape[1]

    @property
    def num_parallel(self) -> int:
        """K, rows per sample in the widest call: J in two-call steps, J + 1 where the anchor is in the same call."""
        return max(
            len([1 for inside in u.lookahead if inside]) + (c == 1) for u, c in zip(self.used, self.steps, strict=True)
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """Sequential calls of each step, AFS not counted."""
        return self.calls  # type: ignore[return-value]

    @property
    def depth(self) -> int:
        """Sequential network calls of one sample."""
        return sum(self.steps) - (self.afs and self.steps[0] == 2)

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        fan = sum(1 for u in self.used for inside in u.lookahead if inside)
        return self.num_steps + fan - (self.afs and self.steps[0] == 2)

    def a(self, name: str) -> Array:
        """A field as the read-only float64 array that it is after construction."""
        return getattr(self, name)

    @functools.cached_property
    def columns(self) -> int:
        """M, memory columns that the rule keeps: the table's own, or those of its Adams-Bashforth look-ahead."""
        own = self.a("memory").shape[1]
        return own if self.lookahead is not None else max(own, (self.order - 1) * (1 + self.num_nodes))

    @functools.cached_property
    def effective_lookahead(self) -> Array:
        """(N, J, 1 + M): the given look-ahead, or uniform Adams-Bashforth of `order` over anchor slopes."""
        if self.lookahead is not None:
            return self.a("lookahead")
        out = np.zeros((self.num_steps, self.num_nodes, 1 + self.columns))
        for n, calls in enumerate(self.steps):
            anchors = [0] if calls == 2 else []
            anchors += [1 + k for k in self.available[n].memory if k % (1 + self.num_nodes) == 0]
            anchors = anchors[: self.order]
            if anchors:
                out[n][:, anchors] = uniform_adams_bashforth(len(anchors))
        return out

    @functools.cached_property
    def available(self) -> tuple[Used, ...]:
        """Which weights have something to weigh."""
        return availability(self.num_steps, self.num_nodes, self.columns, self.steps, self.afs)

    @functools.cached_property
    def used(self) -> tuple[Used, ...]:
        """Which weights are not zero, so that the rule skips the others."""
        ahead, memory = self.effective_lookahead, self._padded_memory
        return tuple(
            Used(
                bool(self.a("anchor")[n]) or not self.num_nodes,
                tuple(k for k in u.memory if memory[n, k]),
                tuple(tuple(k for k in inside if ahead[n, j, k]) for j, inside in enumerate(u.lookahead)),
            )
            for n, u in enumerate(self.available)
        )

    @property
    def _padded_memory(self) -> Array:
        own = self.a("memory")
        return np.pad(own, ((0, 0), (0, self.columns - own.shape[1])))

    def coefficients(self, device: torch.device | str = "cpu") -> Coefficients:
        """The numbers as float64 tensors on a device; on the network's own device a trajectory needs no transfers."""

        def tensor(array: Array) -> Tensor:
            return torch.tensor(array, dtype=torch.float64, device=device)

        return Coefficients(
            sigmas=tensor(self.a("sigmas")),
            nodes=tensor(self.a("nodes")),
            weights=tensor(self.a("weights") * self.a("slope_scale")),
            sigma_scale=tensor(self.a("sigma_scale")),
            anchor=tensor(self.a("anchor")),
            memory=tensor(self._padded_memory),
            lookahead=tensor(self.effective_lookahead),
            calls=self.steps,
            afs=self.afs,
            used=self.used,
        )

    def rule(self, device: torch.device | str = "cpu") -> Rule:
        """The Rule that this table parametrises; its schedule is `table.sigmas`.

        Raises:
            ValueError: by the rule, when it is driven with more sigmas than the table has.
        """
        return parallel(self.coefficients(device))

    def moments(self) -> Array:
        """(N, 2): sum of the update weights, and their first moment over u = (sigma_j - sigma) / (sigma' - sigma).

        A step is consistent when the first is 1 and second order when the second is 1/2 (with unit sigma_scale).
        """
        sigmas, nodes = self.a("sigmas"), self.a("nodes")
        weights = self.a("weights") * self.a("slope_scale")
        out = np.zeros((self.num_steps, 2))
        for n in range(self.num_steps):
            step = sigmas[n + 1] - sigmas[n]
            where = [*self._sigmas_of(n)[1:]]
            u = (np.array(where) - sigmas[n]) / step
            w = weights[n]
            total = [self.a("anchor")[n] + w.sum(), float(w @ u)]
            for k in self.used[n].memory:
                past, slot = divmod(k, 1 + nodes.shape[1])
                earlier = n - 1 - past
                sigma = sigmas[0] if earlier < 0 else self._sigmas_of(earlier)[slot]
                total[0] += self._padded_memory[n, k]
                total[1] += self._padded_memory[n, k] * (sigma - sigmas[n]) / step
            out[n] = total
        return out

    def _sigmas_of(self, n: int) -> Array:
        """Where the 1 + J slopes of step n are taken."""
        sigmas, r = self.a("sigmas"), self.a("nodes")[n]
        return np.concatenate([sigmas[n : n + 1], sigmas[n + 1] ** r * sigmas[n] ** (1 - r)])

    def sorted(self) -> Table:
        """The same solver with each row's nodes in increasing order (memory and look-ahead columns follow them)."""
        width = self.num_nodes
        order = [np.argsort(row, kind="stable") for row in self.a("nodes")]

        def columns(n: int, count: int) -> list[int]:
            moved = []
            for k in range(count):
                past, slot = divmod(k, 1 + width)
                earlier = n - 1 - past
                moved.append(k if slot == 0 or earlier < 0 else past * (1 + width) + 1 + int(order[earlier][slot - 1]))
            return moved

        def rows(name: str) -> Array:
            return np.array([row[p] for row, p in zip(self.a(name), order, strict=True)]).reshape(self.a(name).shape)

        changes: dict[str, Any] = {k: rows(k) for k in ("nodes", "weights", "slope_scale", "sigma_scale")}
        m = self.a("memory").shape[1]
        changes["memory"] = np.array([self.a("memory")[n][columns(n, m)] for n in range(self.num_steps)])
        if self.lookahead is not None:
            ahead = [self.a("lookahead")[n][order[n]] for n in range(self.num_steps)]
            changes["lookahead"] = np.array(
                [row[:, [0, *(1 + k for k in columns(n, m))]] for n, row in enumerate(ahead)]
            )
        return dataclasses.replace(self, **changes)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers (not of the provenance): what a child table names as its parent."""
        numbers = {k: v for k, v in self.to_dict().items() if k != "provenance"}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()

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
        """Writes JSON, atomically: the old file stays whole until the new one is."""
        from .table_json import dumps

        write_atomically(FilePath(path), dumps(self).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Reads our JSON, or a published .pkl / .npz (without executing anything in it)."""
        path = FilePath(path)
        if path.suffix in (".pkl", ".npz"):
            from .convert import table_from_published

            return table_from_published(path)
        from .table_json import loads

        return loads(read_text(path, TableError), str(path))


def _array(name: str, value: ArrayLike, ndim: int, shape: tuple[int | None, ...] | None = None) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()  # NumPy has no bfloat16
    try:
        array = np.array(value).astype(np.float64, casting="same_kind")  # neither text nor complex numbers
    except (TypeError, ValueError, OverflowError) as error:
        raise TableError(f"{name} must be numbers in {ndim} dimensions with rows of equal length: {error}") from error
    if array.size > MAX_SIZE:
        raise TableError(f"{name} has {array.size} numbers, more than {MAX_SIZE}: this is no solver table")
    if array.size == 0 and array.ndim < ndim and shape is not None and shape[0] is not None:
        array = array.reshape(shape[0], *[0 if s is None else s for s in shape[1:]]) if _empty_fits(shape) else array
    expected = shape or (None,) * ndim
    if array.ndim != ndim or any(e is not None and e != got for e, got in zip(expected, array.shape, strict=True)):
        wanted = tuple("any" if e is None else e for e in expected)
        raise TableError(
            f"{name} has shape {array.shape}, needed {wanted}: one row per step of sigmas, one column per node of nodes"
        )
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise TableError(f"{name}{list(where)} = {array[where]} is not finite: every number of a table must be")
    array.setflags(write=False)
    return array


def _empty_fits(shape: tuple[int | None, ...]) -> bool:
    return any(s in (None, 0) for s in shape[1:])


def _check_sigmas(sigmas: Array) -> None:
    if len(sigmas) < 2:
        raise TableError(f"sigmas has {len(sigmas)} numbers, needed at least 2: N steps have N + 1 sigmas")
    if sigmas[-1] <= 0:
        raise TableError(f"sigmas[{len(sigmas) - 1}] = {sigmas[-1]} must be > 0: end on sigma_min, not on 0")
    bad = np.flatnonzero(np.diff(sigmas) >= 0)
    if len(bad):
        i = int(bad[0])
        raise TableError(f"sigmas must decrease, but sigmas[{i}] = {sigmas[i]} and sigmas[{i + 1}] = {sigmas[i + 1]}")


def _calls(calls: int | Sequence[int], n: int) -> tuple[int, ...]:
    if isinstance(calls, bool) or not isinstance(calls, (int, Sequence, np.ndarray)) or isinstance(calls, str):
        raise TableError(f"calls = {calls!r} must be 1 or 2, one number or one per step")
    row = (calls,) * n if isinstance(calls, int) else tuple(calls)
    if len(row) != n or any(isinstance(c, bool) or c not in (1, 2) for c in row):
        raise TableError(f"calls = {list(row)[:8]} must be 1 or 2, one number or one for each of the {n} steps")
    return tuple(int(c) for c in row)


def _first(name: str, bad: NDArray[np.bool_], array: Array, bound: str) -> None:
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise TableError(f"{name}{list(where)} = {array[where]} {bound}")


def _check(table: Table) -> None:
    """What no single field can prove: ranges, sums, and that zeros stand where nothing can be weighed."""
    if type(table.order) is not int or table.order not in (1, 2, 3, 4):  # NumPy integers are no JSON
        raise TableError(f"order = {table.order!r} must be 1, 2, 3 or 4 (Adams-Bashforth steps of the look-ahead)")
    if not isinstance(table.afs, bool):
        raise TableError(f"afs = {table.afs!r} must be true or false")
    nodes = table.a("nodes")
    _first("nodes", (nodes <= 0) | (nodes >= 1), nodes, "must lie inside (0, 1), between the step's two sigmas")
    for name in ("slope_scale", "sigma_scale"):
        _first(name, table.a(name) <= 0, table.a(name), "must be > 0; 1 is neutral")
    if table.a("memory").shape[1] % (1 + table.num_nodes):
        raise TableError(
            f"memory has {table.a('memory').shape[1]} columns, not a multiple of 1 + {table.num_nodes} "
            "(anchor and fan points of each remembered step)"
        )
    if table.lookahead is not None and table.order != 1:
        raise TableError(f"order = {table.order} and lookahead are both given: the look-ahead is one or the other")
    if table.num_nodes == 0 and 2 in table.steps:
        raise TableError(f"calls = {table.steps} has two-call steps but nodes has no columns: give calls=1")
    _check_absent(table)
    _check_sums(table)


def _check_absent(table: Table) -> None:
    ahead, memory = table.effective_lookahead, table.a("memory")
    for n, u in enumerate(table.available):
        missing = [k for k in range(memory.shape[1]) if k not in u.memory and memory[n, k]]
        if missing:
            raise TableError(f"memory[{n}, {missing[0]}] = {memory[n, missing[0]]} must be 0: no earlier step fills it")
        for j, inside in enumerate(u.lookahead):
            gone = [k for k in range(ahead.shape[2]) if k not in inside and ahead[n, j, k]]
            if gone:
                raise TableError(
                    f"lookahead[{n}, {j}, {gone[0]}] = {ahead[n, j, gone[0]]} must be 0: that slope is not known yet"
                )
            if not inside and table.a("weights")[n, j]:
                raise TableError(
                    f"weights[{n}, {j}] = {table.a('weights')[n, j]} must be 0: a one-call step without memory or AFS "
                    "has no direction to look ahead along"
                )


def _check_sums(table: Table) -> None:
    weights, anchor, memory = table.a("weights"), table.a("anchor"), table.a("memory")
    if not anchor.any() and not memory.any():
        _first("weights", weights < 0, weights, "must be >= 0 where neither anchor nor memory is used")
    totals = anchor + weights.sum(1) + memory.sum(1)
    for n, total in enumerate(totals.tolist()):
        if not math.isclose(total, 1.0, rel_tol=0, abs_tol=TOLERANCE * (1 + float(np.abs(memory[n]).sum()))):
            raise TableError(f"the update weights of step {n} sum to {total}, not to 1: divide them by their sum")
    for n, u in enumerate(table.available):
        for j, inside in enumerate(u.lookahead):
            total = float(table.effective_lookahead[n, j].sum())
            if inside and abs(total - 1) > TOLERANCE * (1 + float(np.abs(table.effective_lookahead[n, j]).sum())):
                raise TableError(f"lookahead[{n}, {j}] sums to {total}, not to 1: divide it by its sum")
