"""The learned vector: its image is the table it came from, differentiable, without redundant directions."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch
from helpers import tables
from helpers.toy_models import toy_config, toy_mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epd import Provenance, Table, solve
from epd.distill.families import FAMILIES, structure
from epd.distill.initial import initial_table
from epd.distill.parameters import Parameters
from epd.distill.scales import SCALE
from epd.solvers.combine import combine
from epd.solvers.parallel import Coefficients, parallel

CASES = [
    {"family": "two-call", "calls": 5},
    {"family": "two-call", "calls": 5, "memory": 2},
    {"family": "two-call", "calls": 4, "step_calls": 1, "memory": 2},
    {"family": "two-call", "calls": 4},
    {"family": "dense", "calls": 3, "points": 1},
    {"family": "dense", "calls": 4, "points": 2},
    {"family": "dense", "calls": 3, "points": 3, "memory": 1},
    {"family": "dense", "calls": 3, "points": 2, "afs": False},
    {"family": "epd", "calls": 5},
    {"family": "epd", "calls": 4, "step_calls": 1, "points": 3, "memory": 1},  # beside a fixed anchor
    {"family": "epd", "calls": 3, "learn": ("weights", "memory")},  # there is no memory to learn
    {"family": "epd-plugin", "calls": 7},
    {"family": "amed", "calls": 4},
    {"family": "s4s", "calls": 5},
    {"family": "ld3", "calls": 5},
]


def start(case: dict[str, object]) -> Parameters:
    config = toy_config(**case)
    return Parameters.of(initial_table(config, toy_mixture()), structure(config, "ve").learn)


def moved(parameters: Parameters, spread: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(parameters.start.shape, generator=generator, dtype=torch.float64)
    return parameters.start + spread * noise


def tensors(c: Coefficients) -> list[Tensor]:
    return [getattr(c, f.name) for f in dataclasses.fields(c) if isinstance(getattr(c, f.name), Tensor)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_start_is_the_table_itself(case: dict[str, object]) -> None:
    parameters = start(case)
    for mine, own in zip(
        tensors(parameters.coefficients(parameters.start)), tensors(parameters.base.coefficients()), strict=True
    ):
        assert torch.allclose(mine, own, rtol=0, atol=1e-6)  # nodes and simplex weights keep off their borders


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_vector_is_a_valid_table_with_the_same_trajectory(case: dict[str, object]) -> None:
    """Construction validates: sums, ranges, zeros. The table's own rule then makes the same sample."""
    parameters, noise = start(case), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    vector = moved(parameters)
    table, c = parameters.table(vector, Provenance()), parameters.coefficients(vector)
    assert table.depth == case["calls"]
    expected = solve(parallel(c), toy_mixture(), noise, c.sigmas)
    assert torch.allclose(solve(table.rule(), toy_mixture(), noise, table.sigmas), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_learned_table_can_be_learned_on(case: dict[str, object]) -> None:
    """Parameters of a learned table start from it: scales, weights, sigmas and all."""
    parameters = start(case)
    table = parameters.table(moved(parameters), Provenance())
    again = Parameters.of(table, parameters.learn)
    assert len(again.start) == len(parameters.start)
    for mine, own in zip(tensors(again.coefficients(again.start)), tensors(table.coefficients()), strict=True):
        assert torch.allclose(mine, own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_direction_changes_the_coefficients(case: dict[str, object]) -> None:
    parameters = start(case)

    def flat(vector: Tensor) -> Tensor:
        return torch.cat([t.flatten() for t in tensors(parameters.coefficients(vector))])

    jacobian = cast(Tensor, torch.autograd.functional.jacobian(flat, moved(parameters)))
    # Published weights and slope scales only occur as products: that redundancy is the method's own.
    both = {"weights", "slope_scale"} <= parameters.learn
    redundant = parameters.base.num_steps * (parameters.base.num_nodes - 1) if both else 0
    assert int(torch.linalg.matrix_rank(jacobian)) == len(parameters.start) - redundant > 0
    assert torch.autograd.gradcheck(flat, moved(parameters).requires_grad_())


DENSE = {
    f"{calls} calls of {1 + width}": tables.dense_table(width, calls=calls) for width in (0, 1, 2) for calls in (3, 9)
}
FREE = {**DENSE, **{name: tables.FAMILIES[name] for name in ("free sums", "no first call")}}
LEARNED = FAMILIES["dense"].learn


def assert_same_numbers(c: Coefficients, other: Coefficients, rtol: float = 0.0) -> None:
    for mine, theirs in zip(tensors(c), tensors(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", FREE)
def test_free_tables_are_their_own_start_exactly(name: str) -> None:
    parameters = Parameters.of(FREE[name], LEARNED)
    assert_same_numbers(parameters.coefficients(parameters.start), FREE[name].coefficients())
    table = parameters.table(parameters.start, FREE[name].provenance)
    assert_same_numbers(table.coefficients(), FREE[name].coefficients())
    assert (table.calls, table.consistent) == (FREE[name].calls, FREE[name].consistent)


def sensitivity(parameters: Parameters, samples: int) -> Tensor:
    """How the ends of trajectories, from near and from far, change with the vector."""
    noise = torch.randn(samples, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.cat([40 * noise, 4 * noise])

    def ends(vector: Tensor) -> Tensor:
        c = parameters.coefficients(vector)
        return solve(parallel(c), toy_mixture(), noise, c.sigmas).flatten()

    return cast(Tensor, torch.autograd.functional.jacobian(ends, moved(parameters, 0.1)))


@pytest.mark.parametrize("name", FREE)
def test_every_entry_of_a_free_table_changes_the_solution(name: str) -> None:
    parameters = Parameters.of(FREE[name], LEARNED)
    sizes = sensitivity(parameters, 4).norm(dim=0)
    assert not [entry for entry, size in zip(parameters.names, sizes.tolist(), strict=True) if size < 1e-6]


@pytest.mark.parametrize("name", ["3 calls of 1", "3 calls of 2", "no first call"])
def test_no_entry_of_a_free_table_does_what_others_do_but_sigmas_and_nodes(name: str) -> None:
    """Those rescale free weights and told levels, see `Parameters`."""
    table = FREE[name]
    jacobian = sensitivity(Parameters.of(table, LEARNED), 50)
    singular = torch.linalg.svdvals(jacobian / jacobian.norm(dim=0))
    points = sum(bool(inside) for used in table.used for inside in used.lookahead)
    redundant = 0 if table.consistent else table.num_steps - 1 + points
    assert int((singular > 1e-12 * singular[0]).sum()) == jacobian.shape[1] - redundant


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([*tables.FAMILIES]),
    st.sampled_from([LEARNED, ("weights", "memory"), ("anchor", "sigmas"), FAMILIES["two-call"].learn]),
    st.integers(0, 999),
    st.sampled_from([0.1, 1.0, 10.0, 100.0, 1e4]),
)
def test_every_vector_is_a_valid_table_of_the_same_numbers(
    name: str, learn: tuple[str, ...], seed: int, spread: float
) -> None:
    """However far training throws it: construction of the table validates."""
    parameters = Parameters.of(tables.FAMILIES[name], learn)
    generator = torch.Generator().manual_seed(seed)
    vector = spread * torch.randn(parameters.start.shape, generator=generator, dtype=torch.float64)
    table = parameters.table(vector, Provenance())
    assert_same_numbers(table.coefficients(), parameters.coefficients(vector), rtol=1e-12)


def test_names_tell_the_entries() -> None:
    parameters = start({"family": "epd", "calls": 3})
    assert len(parameters.names) == len(parameters.start) == len(set(parameters.names))
    assert "nodes/1/0" in parameters.names
    assert not [
        name for name in parameters.names if name.startswith("weights") and name.endswith("/0")
    ]  # the softmax's own


def test_fixed_parts_stay_bit_equal() -> None:
    parameters = start({"family": "epd", "calls": 5})
    table = parameters.table(moved(parameters), Provenance())
    assert np.array_equal(table.sigmas, parameters.base.sigmas)
    assert not table.anchor.any()
    assert (table.weights >= 0).all()


def test_learned_sigmas_keep_their_ends_exactly() -> None:
    parameters = start({"family": "s4s", "calls": 5})
    table = parameters.table(moved(parameters), Provenance())
    assert np.array_equal(table.sigmas[[0, -1]], parameters.base.sigmas[[0, -1]])
    assert not np.allclose(table.sigmas[1:-1], parameters.base.sigmas[1:-1])


def test_weights_beside_a_fixed_anchor_share_the_step_with_it() -> None:
    whole = start({"family": "two-call", "calls": 5})
    learned = whole.table(moved(whole), Provenance())
    parameters = Parameters.of(learned, ("weights",))
    table = parameters.table(moved(parameters), Provenance())
    assert np.array_equal(table.anchor, learned.anchor)
    assert np.array_equal(table.memory, learned.memory)
    assert not np.allclose(table.weights, learned.weights)
    totals = table.anchor + table.weights.sum(1) + table.memory.sum(1)
    np.testing.assert_allclose(totals, 1, rtol=0, atol=1e-12)


def test_scales_outside_their_range_are_refused() -> None:
    table = Table([2.0, 1.0], [[0.5]], [[1.0]], slope_scale=[[1.1 + SCALE]])
    with pytest.raises(ValueError, match=r"outside 1 \+- 0.2"):
        Parameters.of(table, ("slope_scale",))


@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("calls", range(2, 11))
def test_structures_make_exactly_the_calls_that_were_asked_for(path: str, family: str, calls: int) -> None:
    """Counted at the network, on both paths, odd and even."""
    model = toy_mixture("ve" if path == "ve" else "flow")
    table = initial_table(toy_config(family=family, calls=calls), model)
    made = []

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        made.append(len(x))
        return model(x, sigma)

    solve(table.rule(), counting, torch.ones(1, 1, 2, 2, dtype=torch.float64), table.sigmas)
    assert (len(made), sum(made), max(made)) == (calls, table.nfe, table.num_parallel) and table.depth == calls
    assert not (path == "flow" and table.afs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "amed", "points": 3}, "points = 3"),
        ({"calls": 4, "afs": True}, "AFS saves no call"),
        ({"calls": 1, "afs": False}, "calls = 1"),
    ],
)
def test_impossible_structures_say_what_to_do(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structure(toy_config(**changes), "ve")


@pytest.mark.parametrize("samples", [(), (3,)], ids=["one table", "a table per sample"])
def test_the_gradient_of_a_weighted_sum_is_that_of_its_formula(samples: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(4, *samples, generator=generator, dtype=torch.float64, requires_grad=True)
    terms = [torch.randn(3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    used = (0, 2, 3)

    def spelled_out(weights: Tensor, *terms: Tensor) -> Tensor:
        return torch.stack([weights[k].reshape(-1, 1, 1) * terms[k] for k in used]).sum(0)

    both = [f(weights, *terms) for f in (lambda w, *t: combine(w, t, used), spelled_out)]
    assert torch.allclose(both[0], both[1], rtol=1e-14)
    mine, theirs = (torch.autograd.grad(b.sin().sum(), (weights, *terms), allow_unused=True) for b in both)
    assert torch.equal(mine[0][1], torch.zeros(samples, dtype=torch.float64)) and mine[2] is None  # term 1 is not used
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-12)
