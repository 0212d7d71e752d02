"""One update of the policy on samples whose advantages are known: epochs of clipped policy gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.clip_grad import clip_grad_norm_

from .config import RefineConfig
from .distribution import Samples
from .objective import approx_kl, clipfrac, clipped_loss, penalised
from .policy import Policy


def learned(
    policy: Policy,
    reference: Policy,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
    advantages: Tensor,
    context: Tensor | None,
    config: RefineConfig,
    lr: float,
    kl_coefficient: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Moves the policy and returns what there is to tell, by CleanRL's names.

    minimise -E min(A r, A clip(r)) + kl_coefficient KL(policy || reference) - entropy H(policy), r the ratio of a
    sample's density to that of the policy that sampled it.

    Args:
        samples: B tables.
        advantages: (B,).
        context: (B, C), or None.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.no_grad():
        old = policy.log_prob(samples, context)
        around = reference(context)
    losses, size = [], max(1, len(samples) // config.minibatches)
    told: dict[str, float] = {}
    for _ in range(config.epochs):
        for rows in torch.randperm(len(samples), generator=generator).split(size):
            distribution = policy(None if context is None else context[rows])
            log_prob = distribution.log_prob(samples[rows])
            loss = clipped_loss(log_prob, old[rows], advantages[rows], config.clip)
            beside = around if context is None else reference(context[rows])
            kl, entropy = distribution.kl(beside), distribution.entropy()
            total = penalised(loss, kl, entropy, kl_coefficient, config.entropy)
            optimizer.zero_grad()
            total.backward()
            norm = clip_grad_norm_(policy.parameters(), config.max_grad_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            told = {
                "losses/grad_norm": float(norm),
                "losses/approx_kl": float(approx_kl(log_prob, old[rows])),
                "losses/clipfrac": float(clipfrac(log_prob, old[rows], config.clip)),
            }
    with torch.no_grad():
        distribution = policy(context)
        return {
            **told,
            "losses/policy_loss": sum(losses) / len(losses),
            "losses/kl_to_reference": float(distribution.kl(around).mean()),
            "losses/kl_coefficient": kl_coefficient,
            "losses/entropy": float(distribution.entropy().mean()),
            "charts/learning_rate": lr,
        }
