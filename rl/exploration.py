"""How many prompts may be run by sampled tables, so that a batch's expected reward keeps a floor with confidence.

The idea is StepMix's: the policy that learns is mixed with the baseline by what is known of both. Episodes are prompts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .conservative import confidence_sequence


def floor_of(baseline_rewards: Tensor, allowed: float) -> float:
    """The reward that a batch shall keep: mean - allowed * standard deviation of the baseline's rewards.

    In units of the spread, so that it means the same for every reward, whatever its zero and its scale. The bound of
    the baseline must leave room, which takes some (4 / allowed)^2 rewards of it: about 300 for an allowed quarter.

    Args:
        baseline_rewards: (n,), n >= 2.
        allowed: >= 0.

    Raises:
        ValueError: for another shape or a value outside of these.
    """
    if baseline_rewards.ndim != 1 or baseline_rewards.numel() < 2:
        raise ValueError(f"baseline_rewards have shape {tuple(baseline_rewards.shape)}, needed (n,) with n >= 2")
    if not 0 <= allowed < math.inf:
        raise ValueError(f"allowed = {allowed} must be at least 0 and finite: standard deviations below the mean")
    rewards = baseline_rewards.double()
    return float(rewards.mean() - allowed * rewards.std())


def _lower(rewards: Tensor, alpha: float) -> float:
    return confidence_sequence(rewards, alpha).low if rewards.numel() else -math.inf


def exploring_share(
    policy_rewards: Tensor, baseline_rewards: Tensor, floor: float, alpha: float, worst: float | None = None
) -> float:
    """The largest share p of prompts for sampled tables with p L(policy) + (1 - p) L(baseline) >= floor, in [0, 1].

    L are lower bounds of confidence sequences at alpha / 2 each, so with probability 1 - alpha they hold for all
    batches at once, as far as `confidence_sequence` holds. Until the policy's rewards are enough, nothing good is
    believed of it: L(policy) is `worst`, so that p starts small where the baseline leaves room. It is 0 where that
    one's own bound is below the floor, unless the policy's bound is not.

    Args:
        policy_rewards: (n,) of tables sampled from the policy as it is; n may be 0. The rewards of a policy that has
            learned since are another's: leave them out, and give each such window its `conservative.level` of alpha.
        baseline_rewards: (m,) of the baseline table; m may be 0.
        floor: a reward, such as `floor_of`.
        alpha: in (0, 1).
        worst: a lower bound of all rewards; only one that is known keeps the floor from the first batch on. By default
            the worst reward seen, but at least as far below the floor as L(baseline) is above it: half of the prompts
            at most for tables of which nothing is known.

    Raises:
        ValueError: for rewards of another shape, not finite or below `worst`, a floor that is NaN, or such an alpha.

    Reference: arXiv 2306.06265 (the idea; there for tabular reinforcement learning).
    """
    if math.isnan(floor):
        raise ValueError("floor is NaN: give the reward that batches shall keep; -inf allows everything")
    low, baseline_low = _lower(policy_rewards, alpha / 2), _lower(baseline_rewards, alpha / 2)
    seen = min((float(r.min()) for r in (policy_rewards, baseline_rewards) if r.numel()), default=math.inf)
    if worst is not None:
        if not worst <= seen:
            raise ValueError(f"worst = {worst} is not below the reward {seen}: give a bound of all rewards, or none")
        low = max(low, worst)
    if low >= floor:
        return 1.0
    if baseline_low <= floor:
        return 0.0
    if worst is None:
        low = max(low, min(seen, 2 * floor - baseline_low))
    return (baseline_low - floor) / (baseline_low - low)


def exploring(groups: int, share: float, generator: torch.Generator) -> Tensor:
    """Which prompts are run by sampled tables: (groups,) booleans, each true with probability `share`, independently.

    Raises:
        ValueError: for fewer than one group, or a share outside of [0, 1].
    """
    if groups < 1:
        raise ValueError(f"groups = {groups} must be at least 1: the number of prompts")
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share} must be in [0, 1]: it is a probability")
    draws = torch.rand(groups, generator=generator, device=generator.device, dtype=torch.float64)
    return draws < share  # draws are below 1 and at least 0: the ends are exact
