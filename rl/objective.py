"""What is minimised: advantages on axes (prompts P, group G), the clipped loss, its terms and what is watched.

A one-shot bandit over tables: no critic, no returns, no order among samples but the two axes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TINY = 1e-8  # keeps zero over zero zero


def _above_first(rewards: Tensor) -> Tensor:
    """Rewards (P, G) less the first of their group, which no baseline notices: equal rewards give exact zeros."""
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)}, needed (prompts, group) with a group of at least 2: what a "
            "reward is compared with are the others of its prompt"
        )
    if not bool(rewards.isfinite().all()):
        p, g = rewards.isfinite().logical_not().nonzero()[0].tolist()
        raise ValueError(f"rewards[{p}, {g}] = {float(rewards[p, g])} is not finite: see to the reward")
    return rewards - rewards[:, :1]


def leave_one_out(rewards: Tensor) -> Tensor:
    """RLOO: each reward less the mean of the others of its prompt, (P, G).

    Reference: arXiv 2402.14740, Eq. 8.
    """
    above = _above_first(rewards)
    return above - (above.sum(1, keepdim=True) - above) / (above.shape[1] - 1)


def group_relative(rewards: Tensor) -> Tensor:
    """GRPO: each reward less the mean of its prompt, over the standard deviation there (of G - 1), (P, G).

    Reference: arXiv 2402.03300, Sec. 4.1.2.
    """
    above = _above_first(rewards)
    return (above - above.mean(1, keepdim=True)) / (above.std(1, keepdim=True) + TINY)


def published(rewards: Tensor) -> Tensor:
    """The published baseline, for comparison only: leave-one-out among G rewards of different prompts, (P, G).

    The rewards, prompt by prompt in one row, are read as (G, P), and each column is taken for a group. Prompts are
    mixed unless P is 1: rewards that are constant within each prompt give advantages that are not zero (0 for one
    prompt of four samples and 1 for another: up to 0.67), nor is their sum over a prompt. Reference: arXiv 2512.22796.
    """
    _above_first(rewards)
    columns = rewards.reshape(rewards.shape[1], rewards.shape[0])
    return leave_one_out(columns.T).T.reshape(rewards.shape)


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "rloo": leave_one_out,
    "grpo": group_relative,
    "published": published,
}


def normalised(advantages: Tensor) -> Tensor:
    """Advantages over their root mean square; no mean is taken away, so that a prompt's keep their sum of zero."""
    return advantages / (advantages.square().mean().sqrt() + TINY)


def clipped_loss(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The mean of -min(A r, A clip(r, 1 - clip, 1 + clip)), r = exp(log_prob - old_log_prob).

    Args:
        log_prob: of the policy that learns; any shape, that of all three.
        old_log_prob: of the policy that sampled, without gradient.
        advantages: without gradient.
        clip: > 0.

    Raises:
        ValueError: for shapes that differ (they would be broadcast, silently) or a clip that is not positive.

    Reference: arXiv 1707.06347, Eq. 7.
    """
    if not log_prob.shape == old_log_prob.shape == advantages.shape:
        shapes = [tuple(t.shape) for t in (log_prob, old_log_prob, advantages)]
        raise ValueError(f"log_prob, old_log_prob and advantages have shapes {shapes}: give them one shape")
    if not clip > 0:
        raise ValueError(f"clip = {clip} must be > 0; infinity does not clip")
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()


def penalised(loss: Tensor, kl: Tensor, entropy: Tensor, kl_coefficient: float, entropy_coefficient: float) -> Tensor:
    """loss + kl_coefficient mean(KL to the reference) - entropy_coefficient mean(entropy), 0-d."""
    return loss + kl_coefficient * kl.mean() - entropy_coefficient * entropy.mean()


def approx_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Estimate of KL(old || new) from samples of the old policy: the mean of (r - 1) - log r, 0-d, >= 0.

    As in CleanRL's `losses/approx_kl`. Reference: J. Schulman, "Approximating KL divergence" (2020), k3.
    """
    log_ratio = (log_prob - old_log_prob).detach()
    return (log_ratio.expm1() - log_ratio).mean()


def clipfrac(log_prob: Tensor, old_log_prob: Tensor, clip: float) -> Tensor:
    """The fraction of samples whose ratio is farther than `clip` from 1, 0-d; CleanRL's `losses/clipfrac`."""
    return ((log_prob - old_log_prob).detach().expm1().abs() > clip).double().mean()


def adapted(coefficient: float, kl: float, target: float) -> float:
    """The KL coefficient of the next update: doubled where kl > 1.5 target, halved where kl < target / 1.5.

    It stays within 1e-6 to 1e6, from where it finds back. Reference: arXiv 1707.06347, Sec. 4.

    Raises:
        ValueError: for a target or coefficient that is not positive: 0 would never move.
    """
    if not (target > 0 and coefficient > 0):
        raise ValueError(f"coefficient = {coefficient} and target = {target} must be > 0; a fixed coefficient has none")
    factor = 2.0 if kl > 1.5 * target else 0.5 if kl < target / 1.5 else 1.0
    return min(max(coefficient * factor, 1e-6), 1e6)
