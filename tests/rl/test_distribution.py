"""Densities, entropy and KL against torch.distributions; the moments of what is sampled."""

from __future__ import annotations

import pytest
import torch
from helpers.policies import CASES, TABLES, generator, moved
from torch import Tensor
from torch.distributions import Dirichlet, Normal, kl_divergence

from epd.rl.distribution import TableDistribution
from epd.rl.policy import Policy


def parts(d: TableDistribution) -> tuple[list[Tensor], list[Dirichlet], Normal]:
    """The same distribution by torch: the places of each Dirichlet's shares, the Dirichlets, the normals."""
    places = [column.nonzero()[:, 0] for column in d.structure.groups.T]
    return places, [Dirichlet(d.concentration[..., p]) for p in places], Normal(d.mean, d.std)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_log_prob_entropy_and_kl_agree_with_torch_distributions(name: str, kind: str) -> None:
    policy = Policy(TABLES[name], kind)
    d, other = moved(policy, 1)(), moved(policy, 2)()
    places, dirichlets, normal = parts(d)
    _, others, other_normal = parts(other)
    values = d.sample(20, generator()).values
    expected = normal.log_prob(values[:, d.concentration.shape[0] :]).sum(1)
    for where, dirichlet in zip(places, dirichlets, strict=True):
        expected = expected + dirichlet.log_prob(values[:, where])
    torch.testing.assert_close(d.log_prob(d.sample(20, generator())), expected, rtol=1e-9, atol=1e-9)
    entropy = normal.entropy().sum() + sum(p.entropy() for p in dirichlets)
    torch.testing.assert_close(d.entropy(), entropy, rtol=1e-9, atol=1e-9)
    kl = kl_divergence(normal, other_normal).sum() + sum(map(kl_divergence, dirichlets, others))
    torch.testing.assert_close(d.kl(other), kl, rtol=1e-9, atol=1e-9)
    assert d.kl(other).item() > 0 and abs(d.kl(d).item()) < 1e-12


@pytest.mark.parametrize(("name", "kind"), [("two steps", "published"), ("dense", "ours")])
def test_samples_have_the_moments_of_the_distribution(name: str, kind: str) -> None:
    d, count = moved(Policy(TABLES[name], kind), by=0.3)(), 40_000
    values = d.sample(count, generator(3)).values
    _, dirichlets, normal = parts(d)
    mean = torch.cat([*(p.mean for p in dirichlets), normal.mean]).detach()
    variance = torch.cat([*(p.variance for p in dirichlets), normal.variance]).detach()
    assert ((values.mean(0) - mean) / (variance / count).sqrt()).abs().max() < 5
    assert (values.var(0) / variance - 1).abs().max() < 0.05
    # Mean log shares are those that the exact KL takes for granted.
    logs = values[:, : d.concentration.shape[0]].log()
    exact = (d.concentration.digamma() - d._totals.digamma() @ d.structure.groups.T).detach()
    assert ((logs.mean(0) - exact) / (logs.std(0) / count**0.5)).abs().max() < 5
    torch.testing.assert_close(d.expected.detach(), mean, rtol=1e-12, atol=1e-14)


def test_changes_of_weights_that_sum_to_one_are_alike_in_every_weight() -> None:
    policy = Policy(TABLES["anchor and memory"])
    c = policy.sample(20_000, generator()).coefficients()
    update = torch.cat([c.anchor[:, None], c.weights, c.memory], 1)[-1]  # (T, B)
    torch.testing.assert_close(update.sum(0), torch.ones(20_000, dtype=torch.float64), rtol=0, atol=1e-12)
    count, std = len(update), policy.structure.kind.std
    expected = std**2 * (torch.eye(count, dtype=torch.float64) - 1 / count)
    assert (torch.cov(update) - expected).abs().max() < 5 * std**2 * (2 / 20_000) ** 0.5
