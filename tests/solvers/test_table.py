"""Tables: what they refuse, that they never change, what they know of themselves."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tables import FAMILIES, PLAIN, SIGMAS, availability, changed, dense_table, epd_table, full_table

import epd

Table, Provenance, TableError = epd.Table, epd.Provenance, epd.TableError
every_family = pytest.mark.parametrize("name", FAMILIES)
ARRAYS = ("sigmas", "nodes", "weights", "slope_scale", "sigma_scale", "anchor_scale", "anchor", "memory")


def plain(**changes: Any) -> epd.Table:  # noqa: ANN401 - any field, right or wrong
    return dataclasses.replace(PLAIN, **changes)


def full(**changes: Any) -> epd.Table:  # noqa: ANN401
    return dataclasses.replace(full_table(past=1), **changes)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_copies_cannot_be_changed_either(copied: Callable[[epd.Table], epd.Table]) -> None:
    table = full()
    before = table.digest, table.used
    other = copied(table)
    assert other == table and (other.digest, other.used) == before
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(other, name)[:] = 0


ONE_CALL = full_table(1, past=1)
WITHOUT_POINT = np.array([1, 1, 0, 1])[:, None, None]  # no direction to the fan point of step 2
BROKEN: dict[str, Callable[[], object]] = {
    # sigmas
    r"sigmas has 1 numbers, needed at least 2": lambda: plain(sigmas=[1.0]),
    r"sigmas has shape \(1, 2\), needed \('any',\)": lambda: plain(sigmas=[[2.0, 1.0]]),
    r"sigmas must decrease, but sigmas\[1\] = 1.0 and sigmas\[2\] = 1.0": lambda: plain(sigmas=[4, 1, 1]),
    r"sigmas must decrease, but sigmas\[0\] = 4.0 and sigmas\[1\] = 5.0": lambda: plain(sigmas=[4, 5, 1]),
    r"sigmas\[2\] = 0.0 must be > 0: end on sigma_min": lambda: plain(sigmas=[4, 2, 0]),
    r"sigmas\[2\] = -1.0 must be > 0": lambda: plain(sigmas=[4, 2, -1]),
    r"sigmas\[1\] = nan is not finite": lambda: plain(sigmas=[4, np.nan, 1]),
    r"sigmas\[0\] = inf is not finite": lambda: plain(sigmas=[np.inf, 2, 1]),
    r"sigmas must be numbers.*dtype\('<U": lambda: plain(sigmas=["4", "2", "1"]),
    r"sigmas must be numbers.*complex": lambda: plain(sigmas=[4j, 2, 1]),
    r"sigmas must be numbers.*dtype\('O'\)": lambda: plain(sigmas=[None, 2, 1]),
    # shapes
    r"nodes has shape \(1, 2\), needed \(2, 'any'\): one row per step": lambda: plain(nodes=[[0.3, 0.8]]),
    r"nodes has shape \(2,\)": lambda: plain(nodes=[0.3, 0.8]),
    r"nodes must be numbers in 2 dimensions with rows of equal length": lambda: plain(nodes=[[0.3], [0.1, 0.2]]),
    r"weights has shape \(2, 1\), needed \(2, 2\)": lambda: plain(weights=[[1.0], [1.0]]),
    r"slope_scale has shape \(2,\), needed \(2, 2\)": lambda: plain(slope_scale=[1.0, 1.0]),
    r"sigma_scale has shape \(3, 2\), needed \(2, 2\)": lambda: plain(sigma_scale=np.ones((3, 2))),
    r"anchor has shape \(3,\), needed \(2,\)": lambda: plain(anchor=[0, 0, 0]),
    r"memory has shape \(1, 3\), needed \(2, 'any'\)": lambda: plain(memory=[[0, 0, 0]]),
    r"memory has 2 columns, not a multiple of 1 \+ 2": lambda: plain(memory=np.zeros((2, 2))),
    r"lookahead has shape \(2, 2, 2\), needed \(2, 2, 1\)": lambda: plain(lookahead=np.ones((2, 2, 2))),
    r"nodes has 1000002 numbers, more than 1000000": lambda: plain(nodes=np.full((2, 500_001), 0.5)),
    # ranges
    r"nodes\[0, 1\] = 1.0 must lie inside \(0, 1\)": lambda: plain(nodes=[[0.3, 1.0], [0.6, 0.1]]),
    r"nodes\[1, 0\] = 0.0 must lie inside \(0, 1\)": lambda: plain(nodes=[[0.3, 0.8], [0.0, 0.1]]),
    r"slope_scale\[1, 1\] = 0.0 must be > 0; 1 is neutral": lambda: plain(slope_scale=[[1, 1], [1, 0]]),
    r"sigma_scale\[0, 0\] = -1.0 must be > 0": lambda: plain(sigma_scale=[[-1, 1], [1, 1]]),
    r"weights\[0, 0\] = -0.25 must be >= 0 where neither anchor": lambda: plain(weights=[[-0.25, 1.25], [0.5, 0.5]]),
    r"update weights of step 1 sum to 1.1, not to 1": lambda: plain(weights=[[0.25, 0.75], [0.6, 0.5]]),
    r"update weights of step 0 sum to 1.5": lambda: plain(anchor=[0.5, 0.0]),
    r"lookahead\[1, 0\] sums to 0.9, not to 1": lambda: plain(lookahead=[[[1], [1]], [[0.9], [1]]]),
    # order, afs, calls
    "order = 0 must be 1, 2, 3 or 4": lambda: plain(order=0),
    "order = 5 must be 1, 2, 3 or 4": lambda: plain(order=5),
    "order = True must be 1, 2, 3 or 4": lambda: plain(order=True),
    "order = 2.0 must be 1, 2, 3 or 4": lambda: plain(order=2.0),
    r"order = .*2.* must be 1, 2, 3 or 4": lambda: plain(order=np.int64(2)),
    "afs = 1 must be true or false": lambda: plain(afs=1),
    r"calls = \[3, 3\] must be 1 or 2": lambda: plain(calls=3),
    r"calls = \[1, 2, 1\] must be .* one for each of the 2 steps": lambda: plain(calls=[1, 2, 1]),
    "calls = 'both' must be 1 or 2": lambda: plain(calls="both"),
    "calls = True must be 1 or 2": lambda: plain(calls=True),
    r"calls = \[1.5, 2\] must be 1 or 2": lambda: plain(calls=[1.5, 2]),
    r"calls = \[\[1, 1\], \[1, 1\]\] must be 1 or 2": lambda: plain(calls=np.ones((2, 2), dtype=int)),
    r"calls = \[True, True\] must be 1 or 2": lambda: plain(calls=np.array([True, True])),
    "nodes has no columns: give calls=1": lambda: Table([2, 1], np.zeros((1, 0)), np.zeros((1, 0)), anchor=[1]),
    "order = 2 and lookahead are both given": lambda: plain(order=2, lookahead=np.ones((2, 2, 1))),
    # what is not known yet
    r"memory\[0, 1\] = 0.5 must be 0: no earlier call": lambda: full(memory=changed(full(), "memory", (0, 1), 0.5)),
    r"lookahead\[0, 1, 2\] = 0.5 must be 0: no earlier call gives it": lambda: full(
        lookahead=changed(full(), "lookahead", (0, 1, 2), 0.5)
    ),
    r"weights\[0, 1\] = 0.5 must be 0: the point is not evaluated, .* a first step of": lambda: dataclasses.replace(
        ONE_CALL, weights=changed(ONE_CALL, "weights", (0, 1), 0.5)
    ),
    r"weights\[0, 0\] = 0.25 must be 0: the point is not evaluated": lambda: plain(calls=1),
    # first steps of no call, free sums
    r"calls = \[1, 0, 1, 1\]: only the first of several steps can take no call": lambda: dense(calls=[1, 0, 1, 1]),
    r"calls = \[0\]: only the first of several": lambda: Table([2, 1], [[]], [[]], anchor=[1], calls=[0]),
    r"afs = True and calls\[0\] = 0: .* leave afs out": lambda: dense(afs=True),
    r"anchor_scale\[0\] = 1.5 must be 1: the first slope is analytic": lambda: dense(
        anchor_scale=changed(dense(), "anchor_scale", (0,), 1.5)
    ),
    r"anchor_scale\[2\] = 0.0 must be > 0": lambda: dense(anchor_scale=changed(dense(), "anchor_scale", (2,), 0)),
    r"update weights of step 0 sum to 0.9.*, not to 1": lambda: dense(consistent=True),
    "consistent = 0 must be true or false": lambda: dense(consistent=0),
    r"weights\[2, 0\] = .* must be 0: the point is not evaluated, .* its look-ahead is 0 throughout": lambda: dense(
        lookahead=dense().lookahead * WITHOUT_POINT
    ),
    r"memory\[3, 1\] = .* must be 0: no earlier call fills it": lambda: dense(
        lookahead=dense().lookahead * WITHOUT_POINT, weights=dense().weights * WITHOUT_POINT[..., 0]
    ),
    r"lookahead\[3, 0, 2\] = .* must be 0: no earlier call gives it": lambda: dense(
        lookahead=dense().lookahead * WITHOUT_POINT,
        weights=dense().weights * WITHOUT_POINT[..., 0],
        memory=changed(dense(), "memory", (3, 1), 0),
    ),
    r"step 1 has two calls and no point with a direction: give calls\[1\] = 1": lambda: Table(
        [4, 2, 1], [[0.5]] * 2, [[1], [0]], anchor=[0, 1], lookahead=[[[1]], [[0]]], consistent=False
    ),
}


def dense(**changes: Any) -> epd.Table:  # noqa: ANN401
    return dataclasses.replace(dense_table(), **changes)


@pytest.mark.parametrize("message", BROKEN)
def test_impossible_tables_name_field_value_and_remedy(message: str) -> None:
    with pytest.raises(TableError, match=message):
        BROKEN[message]()


def test_sums_may_have_the_rounding_of_float32() -> None:
    third = np.array([[1 / 3] * 3], dtype=np.float32)
    assert Table([2, 1], [[0.1, 0.5, 0.9]], third).weights[0, 0] == np.float32(1 / 3)
    with pytest.raises(TableError, match="sum to"):
        Table([2, 1], [[0.1, 0.5, 0.9]], third + 1e-4)


def test_lists_arrays_and_tensors_give_the_same_table() -> None:
    values: dict[str, Any] = {
        "sigmas": [4, 2, 1],
        "nodes": [[0.25, 0.75], [0.5, 0.125]],
        "weights": [[0.25, 0.75], [0.5, 0.5]],
    }
    expected = Table(**values)
    makers: list[Callable[[list[Any]], Any]] = [
        lambda v: tuple(map(tuple, v)) if isinstance(v[0], list) else tuple(v),
        np.array,
        lambda v: np.asfortranarray(np.array(v, dtype=np.float32)),
        lambda v: torch.tensor(v, dtype=torch.float64),
        lambda v: torch.tensor(v, dtype=torch.bfloat16),  # every number here is exact in it
        lambda v: torch.tensor(v, dtype=torch.float32, requires_grad=True),
    ]
    for make in makers:
        assert Table(**{k: make(v) for k, v in values.items()}) == expected
    calls: Any = np.array([2, 2])
    assert Table(**values, calls=calls) == expected


def test_a_table_cannot_be_changed() -> None:
    source = np.array([4.0, 2.0, 1.0])
    table = plain(sigmas=source)
    source[:] = 7
    assert table.sigmas.tolist() == [4.0, 2.0, 1.0]
    for field in dataclasses.fields(Table):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(table, field.name, 1)
    for name in (*ARRAYS, "lookahead"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(full(), name)[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.provenance.model = "other"  # type: ignore[misc]
    coefficients = table.coefficients()
    coefficients.nodes.zero_()  # tensors of one's own
    assert table.coefficients().nodes.tolist() == table.nodes.tolist()


def moments_by_driving(table: epd.Table) -> np.ndarray:
    """The moments from what the rule does: it integrates slopes that are 1, or sigma, and depend on nothing else."""
    sigmas, rule = torch.tensor(table.sigmas), table.rule()
    means = []
    for slope in (torch.ones_like, lambda sigma: sigma):
        history, row = (), []
        for n in range(table.num_steps):
            # The analytic first slope is x / sqrt(1 + sigma^2): from this x it is the slope, too.
            x = (slope(sigmas[n]) * (1 + sigmas[n] ** 2).sqrt()).reshape(1, 1)

            asking = rule(x, sigmas[n], sigmas[n + 1], n, history)
            try:
                ask = next(asking)
                while True:
                    ask = asking.send(slope(ask.sigma).reshape(-1, 1, 1))
            except StopIteration as stop:
                mean, history = stop.value
            row.append(float(mean))
        means.append(row)
    (ones, linear), s = np.array(means), table.sigmas
    return np.stack([ones, (linear - s[:-1] * ones) / np.diff(s)], 1)


@every_family
def test_moments_are_what_the_rule_does(name: str) -> None:
    table = FAMILIES[name]
    np.testing.assert_allclose(table.moments(), moments_by_driving(table), rtol=1e-11, atol=1e-11)


@every_family
def test_sorted_keeps_the_solver(name: str) -> None:
    table = dataclasses.replace(FAMILIES[name], provenance=Provenance(model="m"))
    ordered = table.sorted()
    assert bool((np.diff(ordered.nodes, axis=1) >= 0).all())
    np.testing.assert_allclose(ordered.moments(), table.moments(), rtol=1e-12, atol=1e-12)
    assert ordered.sorted() == ordered
    assert (ordered.depth, ordered.nfe, ordered.provenance) == (table.depth, table.nfe, table.provenance)
    assert np.sort(ordered.memory, 1).tolist() == np.sort(table.memory, 1).tolist()


AFS_OR_NOT = itertools.product([[1, 1, 1, 1], [2, 2, 2, 2], [1, 2, 2, 1], [2, 1, 1, 1]], [False, True])


@pytest.mark.parametrize(("calls", "afs"), [*AFS_OR_NOT, ([0, 1, 1, 1], False), ([0, 1, 2, 1], False)])
@pytest.mark.parametrize(("width", "past"), [(1, 1), (2, 2), (3, 3)])
def test_available_memory_is_what_earlier_steps_evaluated(calls: list[int], afs: bool, width: int, past: int) -> None:
    table = full_table(calls, afs, width, past)
    filled = [[k in used.memory for k in range(past * (1 + width))] for used in table.available]
    assert filled == availability(calls, afs, width, past).tolist()


def test_families_cover_both_kinds_of_steps() -> None:
    assert {calls for table in FAMILIES.values() for calls in table.calls} == {0, 1, 2}
    assert all(table.num_steps == len(SIGMAS) - 1 for table in FAMILIES.values())
    assert epd_table(afs=True).depth == 7
