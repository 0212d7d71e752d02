"""The policy: its mean at the start is the base, its tables are valid and run together as each does alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import tables
from helpers.counting import counting
from helpers.policies import CASES, TABLES, generator, moved

import epd
from epd.rl.parametrisation import PARAMETRISATIONS, Parametrisation
from epd.rl.policy import Policy
from epd.rl.structure import INSIDE
from epd.solvers.parallel import parallel

FIELDS = ("sigmas", "nodes", "weights", "sigma_scale", "anchor_scale", "anchor", "memory", "lookahead")


def distance(a: epd.Table, b: epd.Table) -> float:
    """The largest difference of any coefficient."""
    one, other = a.coefficients(), b.coefficients()
    pairs = [(getattr(one, name), getattr(other, name)) for name in FIELDS]
    return max(float((x - y).abs().max()) for x, y in pairs if x.numel())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_mean_at_the_start_is_the_base_for_every_structure(name: str, kind: str) -> None:
    base = TABLES[name]
    mean = Policy(base, kind).mean()
    assert distance(mean, base) < 1e-12
    assert mean.provenance.parent == base.digest
    assert (mean.order, mean.afs, mean.calls, mean.consistent) == (
        base.order,
        base.afs,
        base.calls,
        base.consistent,
    ) or (
        base.order > 1 and kind != "published"  # a sampled look-ahead is no Adams-Bashforth look-ahead any more
    )
    assert (mean.depth, mean.nfe) == (base.depth, base.nfe)
    conditioned = Policy(base, kind, context_size=3)
    assert distance(conditioned.mean(torch.randn(1, 3)), base) < 1e-12


def test_weights_of_zero_and_equal_nodes_have_a_mean_too() -> None:
    base = epd.Table([4.0, 2.0, 1.0], [[0.5, 0.5], [0.2, 0.9]], [[0.0, 1.0], [1.0, 0.0]])
    policy = Policy(base, "published")
    assert distance(policy.mean(), base) < 1e-6
    samples = policy.sample(50, generator())
    assert policy.log_prob(samples).isfinite().all()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_rollout_of_different_tables_is_separate_solves_with_the_calls_of_one(name: str, kind: str) -> None:
    policy = moved(Policy(TABLES[name], kind))
    samples = policy.sample(5, generator())
    model = counting()
    noise = torch.randn(5, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    c = samples.coefficients()
    together = epd.solve(parallel(c), model, noise, c.sigmas)
    calls, model.calls = model.calls, []
    assert len(calls) == TABLES[name].depth and sum(calls) == 5 * TABLES[name].nfe
    for i in range(5):
        table = samples.table(i)
        alone = epd.solve(table.rule(), model, noise[i : i + 1], table.sigmas)
        assert table.depth == TABLES[name].depth
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)
    assert len({samples.table(i).digest for i in range(5)}) == 5


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_the_structure_makes_zero_or_fixed_stays_so_to_the_bit(name: str, kind: str) -> None:
    base = TABLES[name]
    mean = moved(Policy(base, kind)).mean()
    columns = base.columns
    for n, can in enumerate(base.available):
        if mean.memory.shape[1]:
            assert all(mean.memory[n, k] == 0 for k in range(columns) if k not in can.memory)
        for j, inside in enumerate(can.lookahead):
            assert all(mean.effective_lookahead[n, j, k] == 0 for k in range(1 + columns) if k not in inside)
            assert inside or (mean.weights[n, j] == 0 and mean.nodes[n, j] == base.nodes[n, j])
    assert (mean.sigmas[0], mean.sigmas[-1]) == (base.sigmas[0], base.sigmas[-1])
    assert not base.moves_first_call or mean.anchor_scale[0] == 1
    fixed = "slope_scale" if kind != "published" else "anchor_scale"
    assert (getattr(mean, fixed) == getattr(base, fixed)).all()


@pytest.mark.parametrize(
    ("name", "kind"), [("dense", "ours"), ("mixed calls", "ours"), ("dense", "whitened"), ("epd", "published")]
)
@pytest.mark.parametrize("concentration", [1e-3, 0.3, 1e6])
def test_tables_are_valid_and_densities_finite_at_the_border(name: str, kind: str, concentration: float) -> None:
    wild = dataclasses.replace(PARAMETRISATIONS[kind], concentration=concentration, std=30.0, scale_std=3.0)
    policy = moved(Policy(TABLES[name], wild), by=3.0)
    samples = policy.sample(200, generator())
    for i in range(0, 200, 10):
        samples.table(i)  # a Table proves itself
    shares = samples.values[:, : len(policy.structure.shares)]
    assert not shares.numel() or float(shares.min()) >= INSIDE / (1 + 10 * INSIDE) and float(shares.max()) < 1
    loss = policy.log_prob(samples).mean() + policy.entropy() + policy.kl(Policy(TABLES[name], wild))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())
    policy.mean()


def test_equal_generators_give_equal_tables_and_parts_of_a_rollout_are_its_rows() -> None:
    policy = Policy(tables.dense_table())
    one, same, other = (policy.sample(6, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.values, same.values) and not torch.equal(one.values, other.values)
    assert len(one[2:4]) == 2 and one[2:4].table(0) == one.table(2)
    assert one[torch.tensor([5, 1])].table(1) == one.table(1)
    assert not one.values.requires_grad
    again = Policy(tables.dense_table())
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    state = torch.get_rng_state()
    Policy(tables.dense_table(), seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_antithetic_pairs_have_opposite_normals_and_independent_shares() -> None:
    policy = moved(Policy(tables.full_table()))
    dist, count = policy(), len(policy.structure.shares)
    values = policy.sample(8, generator(), antithetic=True).values
    pairs = values[:, count:].unflatten(0, (4, 2))
    torch.testing.assert_close(pairs.mean(1), dist.mean.detach().expand(4, -1), rtol=0, atol=1e-14)
    assert not torch.allclose(values[0, :count], values[1, :count])
    with pytest.raises(ValueError, match="count = 7 must be at least 1, even"):
        policy.sample(7, generator(), antithetic=True)


def test_a_context_gives_each_row_its_own_distribution() -> None:
    policy = moved(Policy(tables.PLAIN, context_size=2))
    context = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.0, 1.0]])
    samples = policy.sample(3, generator(), context)
    log_prob, entropy = policy.log_prob(samples, context), policy.entropy(context)
    kl = policy.kl(moved(policy, 1), context)
    assert log_prob.shape == entropy.shape == kl.shape == (3,) and entropy[0] != entropy[1]
    torch.testing.assert_close(entropy[0], entropy[2], rtol=1e-12, atol=0)
    for i in range(3):
        row = context[i : i + 1]
        torch.testing.assert_close(policy.log_prob(samples[i : i + 1], row), log_prob[i : i + 1], rtol=1e-12, atol=0)
        torch.testing.assert_close(policy.kl(moved(policy, 1), row), kl[i : i + 1], rtol=1e-12, atol=0)
        assert distance(policy.expected(context).table(i), policy.mean(row)) < 1e-14
    assert distance(policy.mean(context[:1]), policy.mean(context[1:2])) > 1e-4


def test_what_does_not_fit_is_refused_by_value_bound_and_remedy() -> None:
    with pytest.raises(ValueError, match="kind = 'dirichlet' is unknown: give one of published, ours"):
        Policy(tables.PLAIN, "dirichlet")
    with pytest.raises(ValueError, match="not on the simplex.*take the parametrisation 'ours'"):
        Policy(tables.full_table(), "published")
    with pytest.raises(ValueError, match="nothing of this table is sampled"):
        Policy(tables.full_table(1, width=0, past=3), "published")
    with pytest.raises(ValueError, match="width = 0"):
        Policy(tables.PLAIN, width=0)
    with pytest.raises(ValueError, match="gaussian has 'weights': give some of sigmas, update, lookahead"):
        Parametrisation((), ("weights",))
    with pytest.raises(ValueError, match="weights are in dirichlet and"):
        Parametrisation(("weights",), ("update",))
    with pytest.raises(ValueError, match="std = nan must be positive"):
        Parametrisation(("nodes",), std=float("nan"))
    policy = Policy(tables.PLAIN)
    with pytest.raises(ValueError, match="only policies of one base"):
        policy.kl(Policy(tables.dense_table()))
    with pytest.raises(ValueError, match=r"context has shape \(1, 3\), needed None"):
        policy(torch.zeros(1, 3))
    conditioned = Policy(tables.PLAIN, context_size=2)
    with pytest.raises(ValueError, match=r"context has shape None, needed \(B, 2\)"):
        conditioned()
    with pytest.raises(ValueError, match="count = 4 must be.*and 2, one for each context"):
        conditioned.sample(4, generator(), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="context has 2 rows"):
        conditioned.mean(torch.zeros(2, 2))
