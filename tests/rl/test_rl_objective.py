"""Advantages by prompt, the clipped loss, what is watched; the gradient of an expected reward against differences."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import tables
from helpers.policies import generator, moved
from helpers.toy_models import toy_mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import epd
from epd.rl import objective
from epd.rl.distribution import Samples
from epd.rl.parametrisation import Parametrisation
from epd.rl.policy import Policy
from epd.solvers.parallel import parallel

OURS = [objective.BASELINES["rloo"], objective.BASELINES["grpo"]]


def rewards(p: int, g: int, seed: int = 0) -> Tensor:
    """Random rewards (P, G), each prompt of another level."""
    noise = torch.randn(p, g, generator=generator(seed), dtype=torch.float64)
    return noise + 10 * torch.arange(p, dtype=torch.float64)[:, None]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 100))
def test_advantages_sum_to_zero_within_every_prompt(p: int, g: int, seed: int) -> None:
    for baseline in OURS:
        advantages = baseline(rewards(p, g, seed))
        assert advantages.sum(1).abs().max() < 1e-12
        assert objective.normalised(advantages).sum(1).abs().max() < 1e-12


def test_each_baseline_by_hand() -> None:
    r = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    loo = torch.tensor([[1 - 4, 2 - 3.5, 6 - 1.5], [-1.5, -1.5, 3]], dtype=torch.float64)
    torch.testing.assert_close(objective.leave_one_out(r), loo)
    grpo = torch.tensor([[-2, -1, 3], [-1, -1, 2]], dtype=torch.float64) / torch.tensor([[7.0], [3.0]]).sqrt()
    torch.testing.assert_close(objective.group_relative(r), grpo, rtol=1e-7, atol=0)
    # Columns of [[1, 2], [6, 0], [0, 3]] are groups: 1 - 3, 2 - 1.5, 6 - .5, 0 - 2.5, 0 - 3.5, 3 - 1.
    mixed = torch.tensor([[-2.0, 0.5, 5.5], [-2.5, -3.5, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(objective.published(r), mixed)
    torch.testing.assert_close(objective.published(r[:1]), objective.leave_one_out(r[:1]))


def test_a_reward_that_is_constant_within_prompts_moves_nothing_but_by_the_published_baseline() -> None:
    policy = moved(Policy(tables.PLAIN))
    samples = policy.sample(8, generator())
    levels = torch.tensor([[0.1], [1.1]], dtype=torch.float64).expand(2, 4)
    for baseline in OURS:
        advantages = objective.normalised(baseline(levels)).flatten()
        policy.zero_grad()
        log_prob = policy.log_prob(samples)
        objective.clipped_loss(log_prob, log_prob.detach(), advantages, 0.2).backward()
        assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())
    mixed = objective.published(levels)
    torch.testing.assert_close(mixed, torch.tensor([[-2 / 3] * 4, [2 / 3] * 4], dtype=torch.float64))


def test_clipping_and_what_is_watched_are_the_direct_computation() -> None:
    ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 2.0, 0.5, 0.9, 1.0, 1.1, 2.0], dtype=torch.float64)
    advantages = torch.tensor([1.0] * 5 + [-1.0] * 5, dtype=torch.float64)
    log_prob, old = ratio.log().requires_grad_(), torch.zeros(10, dtype=torch.float64)
    loss = objective.clipped_loss(log_prob, old, advantages, 0.2)
    terms = [0.5, 0.9, 1.0, 1.1, 1.2, -0.8, -0.9, -1.0, -1.1, -2.0]  # min(A r, A clip(r))
    assert math.isclose(loss.item(), -sum(terms) / 10)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    passes = torch.tensor([1, 1, 1, 1, 0, 0, 1, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(gradient, -advantages * ratio * passes / 10)
    assert math.isclose(float(objective.clipfrac(log_prob, old, 0.2)), 0.4)
    kl = sum(r - 1 - math.log(r) for r in ratio.tolist()) / 10
    assert math.isclose(float(objective.approx_kl(log_prob, old)), kl)
    total = objective.penalised(loss, torch.tensor([1.0, 3.0]), torch.tensor(4.0), 0.5, 0.25)
    assert math.isclose(total.item(), loss.item() + 1 - 1, rel_tol=1e-6)


def test_approx_kl_estimates_the_exact_kl() -> None:
    old, new = Policy(tables.PLAIN), moved(Policy(tables.PLAIN), by=0.05)
    samples = old.sample(20_000, generator())
    exact, estimate = old.kl(new), objective.approx_kl(new.log_prob(samples), old.log_prob(samples))
    assert 0 < exact.item() < 2 and math.isclose(estimate.item(), exact.item(), rel_tol=0.1)


def test_the_kl_coefficient_follows_its_target() -> None:
    assert objective.adapted(1.0, 0.02, 0.01) == 2 and objective.adapted(1.0, 0.001, 0.01) == 0.5
    assert objective.adapted(1.0, 0.012, 0.01) == 1
    assert objective.adapted(1e6, 1.0, 0.01) == 1e6 and objective.adapted(1e-6, 0.0, 0.01) == 1e-6
    with pytest.raises(ValueError, match="target = 0"):
        objective.adapted(1.0, 0.1, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(4), r"shape \(4,\), needed \(prompts, group\)"),
        (torch.zeros(4, 1), "at least 2"),
        (torch.tensor([[0.0, math.nan]]), r"rewards\[0, 1\] = nan is not finite"),
    ],
)
def test_rewards_that_are_none_are_refused(values: Tensor, message: str) -> None:
    for baseline in objective.BASELINES.values():
        with pytest.raises(ValueError, match=message):
            baseline(values)


def test_losses_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="give them one shape"):
        objective.clipped_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4, 1), 0.2)
    with pytest.raises(ValueError, match="clip = 0"):
        objective.clipped_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4), 0)


def bias_direction(policy: Policy) -> Tensor:
    """A direction among the biases of the last layer."""
    return torch.randn(policy.last.bias.shape, generator=generator(7), dtype=torch.float64)


def shifted(policy: Policy, by: float) -> Policy:
    """The policy a little along that direction."""
    out = moved(policy, by=0.0)
    with torch.no_grad():
        out.last.bias.add_(by * bias_direction(policy))
    return out


def score_gradient(policy: Policy, values: Tensor, samples: Samples) -> tuple[float, float]:
    """The derivative of the expected reward along the direction by the loss, and its standard error."""
    advantages = objective.leave_one_out(values.reshape(-1, 4)).flatten()
    log_prob = policy.log_prob(samples)
    policy.zero_grad()
    objective.clipped_loss(log_prob, log_prob.detach(), advantages, 0.2).backward()
    assert policy.last.bias.grad is not None
    estimate = -float(policy.last.bias.grad @ bias_direction(policy))
    h = 1e-5
    scores = (shifted(policy, h).log_prob(samples) - shifted(policy, -h).log_prob(samples)).detach() / (2 * h)
    terms = (advantages * scores).reshape(-1, 4).mean(1)  # independent by group
    assert math.isclose(float(terms.mean()), estimate, rel_tol=1e-4)
    return estimate, float(terms.std() / len(terms) ** 0.5)


def test_the_score_gradient_of_an_end_points_error_agrees_with_finite_differences() -> None:
    """Reward: minus the squared distance to the exact end point, by tables whose numbers are all normal.

    The difference is of large-sample means with common random numbers (a normal's samples are smooth in its parameters,
    those of a gamma's rejection are not): its error is far below that of the score function.
    """
    kind = Parametrisation((), ("update", "lookahead"), ("sigma_scale", "anchor_scale"), std=0.1, scale_std=0.1)
    policy = moved(Policy(tables.PLAIN, kind))
    model, count = toy_mixture(), 40_000
    noise = torch.randn(1, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    sigmas = torch.tensor(tables.PLAIN.sigmas)
    target = epd.solve(epd.rules.heun(), model, noise, torch.logspace(math.log10(4), 0, 65, dtype=torch.float64))

    def reward(p: Policy) -> Tensor:
        c = p.sample(count, generator(2)).coefficients()
        end = epd.solve(parallel(c), model, noise.expand(count, -1, -1, -1), sigmas)
        return -(end - target).square().flatten(1).sum(1)

    h = 1e-2
    difference = float((reward(shifted(policy, h)) - reward(shifted(policy, -h))).mean() / (2 * h))
    estimate, error = score_gradient(policy, reward(policy), policy.sample(count, generator(2)))
    assert error < abs(difference) / 5, "the sample says nothing"
    assert abs(estimate - difference) < 3 * error


def test_the_score_gradient_through_dirichlets_agrees_with_the_exact_expectation() -> None:
    """Reward: the first share of each Dirichlet, squared, whose expectation is a (a + 1) / (A (A + 1))."""
    policy = moved(Policy(tables.PLAIN, Parametrisation(("nodes", "weights"), concentration=5.0)))
    firsts = policy.structure.groups.argmax(0)

    def expectation(p: Policy) -> float:
        d = p()
        a, total = d.concentration[firsts], d.concentration @ d.structure.groups
        return (a * (a + 1) / (total * (total + 1))).sum().item()

    samples = policy.sample(40_000, generator(5))
    h = 1e-5
    exact = (expectation(shifted(policy, h)) - expectation(shifted(policy, -h))) / (2 * h)
    estimate, error = score_gradient(policy, samples.values[:, firsts].square().sum(1), samples)
    assert error < abs(exact) / 5, "the sample says nothing"
    assert abs(estimate - exact) < 3 * error
