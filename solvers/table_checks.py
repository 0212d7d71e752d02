"""What a table must be, each field by itself and all together: one error that names value, bound and remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

if TYPE_CHECKING:
    from .table import Table

Array = NDArray[np.float64]
TOLERANCE = 1e-5  # on sums that must be one: published tables are float32
MAX_SIZE = 1_000_000  # numbers in one field; far beyond any real table, it bounds what a file can make us allocate


LESS = "give fewer calls or points, or a shorter memory"


class TableError(ValueError):
    """A table that cannot be: the message names the field, the value, the bound and the remedy."""


def field_of(name: str, value: ArrayLike, ndim: int, shape: tuple[int | None, ...] | None = None) -> Array:
    """A field as a read-only float64 array of this shape, where None is any size; finite numbers only."""
    if isinstance(value, Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()  # NumPy has no bfloat16
    try:
        array = np.array(value).astype(np.float64, casting="same_kind")  # neither text nor complex numbers
    except (TypeError, ValueError, OverflowError) as error:
        raise TableError(f"{name} must be numbers in {ndim} dimensions with rows of equal length: {error}") from error
    if array.size > MAX_SIZE:
        raise TableError(f"{name} has {array.size} numbers, more than {MAX_SIZE}: {LESS}")
    if array.size == 0 and array.ndim < ndim and shape is not None and shape[0] is not None:
        array = array.reshape(shape[0], *[0 if s is None else s for s in shape[1:]]) if _empty_fits(shape) else array
    expected = shape or (None,) * ndim
    if array.ndim != ndim or any(e is not None and e != got for e, got in zip(expected, array.shape, strict=True)):
        needed = tuple("any" if e is None else e for e in expected)
        raise TableError(
            f"{name} has shape {array.shape}, needed {needed}: one row per step of sigmas, one column per node of nodes"
        )
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise TableError(f"{name}{list(where)} = {array[where]} is not finite: every number of a table must be")
    array.setflags(write=False)
    return array


def scale_of(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """A field of factors, by default 1."""
    return field_of(name, np.ones(shape) if value is None else value, len(shape), shape)


def _empty_fits(shape: tuple[int | None, ...]) -> bool:
    return any(s in (None, 0) for s in shape[1:])


def check_sigmas(sigmas: Array) -> None:
    """At least two, positive, strictly decreasing."""
    if len(sigmas) < 2:
        raise TableError(f"sigmas has {len(sigmas)} numbers, needed at least 2: N steps have N + 1 sigmas")
    if sigmas[-1] <= 0:
        raise TableError(f"sigmas[{len(sigmas) - 1}] = {sigmas[-1]} must be > 0: end on sigma_min, not on 0")
    bad = np.flatnonzero(np.diff(sigmas) >= 0)
    if len(bad):
        i = int(bad[0])
        raise TableError(f"sigmas must decrease, but sigmas[{i}] = {sigmas[i]} and sigmas[{i + 1}] = {sigmas[i + 1]}")


def checked_calls(calls: int | Sequence[int], n: int) -> tuple[int, ...]:
    """1 or 2 for each of n steps, from one number or one per step; 0 for the first of several."""
    calls = calls.tolist() if isinstance(calls, np.ndarray) else calls
    if isinstance(calls, bool) or not isinstance(calls, (int, Sequence)) or isinstance(calls, str):
        raise TableError(f"calls = {calls!r} must be 1 or 2, one number or one per step")
    row = (calls,) * n if isinstance(calls, int) else tuple(calls)
    if len(row) != n or any(isinstance(c, bool) or c not in (0, 1, 2) for c in row):
        raise TableError(f"calls = {list(row)[:8]} must be 1 or 2, one number or one for each of the {n} steps")
    if 0 in row[1:] or n == 1 and row[0] == 0:
        raise TableError(
            f"calls = {list(row)[:8]}: only the first of several steps can take no call, on the analytic slope; give "
            "1 or 2 to the others"
        )
    return tuple(int(c) for c in row)


def _first(name: str, bad: NDArray[np.bool_], array: Array, bound: str) -> None:
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise TableError(f"{name}{list(where)} = {array[where]} {bound}")


def check(table: Table) -> None:
    """What no single field can prove: ranges, sums, and that zeros stand where nothing can be weighed."""
    if type(table.order) is not int or table.order not in (1, 2, 3, 4):  # NumPy integers are no JSON
        raise TableError(f"order = {table.order!r} must be 1, 2, 3 or 4 (Adams-Bashforth steps of the look-ahead)")
    if not isinstance(table.afs, bool):
        raise TableError(f"afs = {table.afs!r} must be true or false")
    nodes = table.nodes
    _first("nodes", (nodes <= 0) | (nodes >= 1), nodes, "must lie inside (0, 1), between the step's two sigmas")
    if not isinstance(table.consistent, bool):
        raise TableError(f"consistent = {table.consistent!r} must be true or false")
    for name in ("slope_scale", "sigma_scale", "anchor_scale", "guidance_scale", "anchor_guidance"):
        _first(name, getattr(table, name) <= 0, getattr(table, name), "must be > 0; 1 is neutral")
    if table.memory.shape[1] % (1 + table.num_nodes):
        raise TableError(
            f"memory has {table.memory.shape[1]} columns, not a multiple of 1 + {table.num_nodes} "
            "(anchor and fan points of each remembered step)"
        )
    if table.lookahead is not None and table.order != 1:
        raise TableError(f"order = {table.order} and lookahead are both given: the look-ahead is one or the other")
    if table.num_nodes == 0 and 2 in table.calls:
        raise TableError(f"calls = {table.calls} has two-call steps but nodes has no columns: give calls=1")
    if table.calls[0] == 0 and table.afs:
        raise TableError("afs = True and calls[0] = 0: a first step of no call is analytic by itself, leave afs out")
    for name in ("anchor_scale", "anchor_guidance"):
        if table.moves_first_call and getattr(table, name)[0] != 1:
            raise TableError(f"{name}[0] = {getattr(table, name)[0]} must be 1: the first slope is analytic")
    _check_absent(table)
    if table.consistent:
        _check_sums(table)


def _check_absent(table: Table) -> None:
    lookahead, memory = table.effective_lookahead, table.memory
    for n, u in enumerate(table.available):
        missing = [k for k in range(memory.shape[1]) if k not in u.memory and memory[n, k]]
        if missing:
            raise TableError(f"memory[{n}, {missing[0]}] = {memory[n, missing[0]]} must be 0: no earlier call fills it")
        for j, inside in enumerate(u.lookahead):
            gone = [k for k in range(lookahead.shape[2]) if k not in inside and lookahead[n, j, k]]
            if gone:
                raise TableError(
                    f"lookahead[{n}, {j}, {gone[0]}] = {lookahead[n, j, gone[0]]} must be 0: no earlier call gives it"
                )
            if not inside and table.weights[n, j]:
                raise TableError(
                    f"weights[{n}, {j}] = {table.weights[n, j]} must be 0: the point is not evaluated, as it has no "
                    "direction: its look-ahead is 0 throughout, or it is in a first step of no call, or of one without "
                    "AFS"
                )
        if table.calls[n] == 2 and not any(u.lookahead):
            raise TableError(f"step {n} has two calls and no point with a direction: give calls[{n}] = 1")


def _check_sums(table: Table) -> None:
    weights, anchor, memory = table.weights, table.anchor, table.memory
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
