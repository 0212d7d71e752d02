"""What a policy of accelerated sampling decides, as distributions: how far to jump, whether to compute, how densely."""

from __future__ import annotations

import math

import torch
from torch import Tensor

INSIDE = 1e-3  # shares of what is left stay this far inside of (0, 1), where a Beta's density may be infinite
COMPUTE, REUSE = 0, 1


def jump_parameters(outputs: Tensor, remaining: Tensor, jump: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """(alpha, beta) of the Beta over the share a of the remaining steps that is left after a jump, (R,) each.

    alpha = 1 + k m and beta = 1 + k (1 - m) with the mode m = sigmoid(logit(m0) + o0) and k = sharpness r exp(o1): it
    always has one mode, which at outputs of zero is the middle of the shares that stand for `jump` steps.

    Args:
        outputs: (R, 2) of the head.
        remaining: (R,) r >= 1, steps that are left with the present one.
        jump: >= 1, of a policy that has learned nothing.
        sharpness: > 0; the mean jump at the start is about jump - 1/2 + 1 / sharpness.

    Reference: arXiv 2412.01243 (alpha, beta > 1), arXiv 2509.22323 (t a).
    """
    left = remaining.to(outputs)
    start = ((left - jump + 0.5) / left).clamp(INSIDE, 1 - INSIDE)
    mode = (start.logit() + outputs[:, 0]).sigmoid()
    sharp = sharpness * left * outputs[:, 1].clamp(-4, 4).exp()
    return 1 + sharp * mode, 1 + sharp * (1 - mode)


def jump_of(share: Tensor, remaining: Tensor) -> Tensor:
    """Steps ahead (R,), at least 1: r - floor(r a), where a is the share of the r remaining steps that is left."""
    left = (share.double() * remaining).floor().long()
    return remaining - torch.minimum(left, remaining - 1)


def beta_mode(alpha: Tensor, beta: Tensor) -> Tensor:
    """(R,) where the density is largest, for alpha, beta > 1."""
    return (alpha - 1) / (alpha + beta - 2)


def beta_log_prob(share: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Log density (R,) of shares in (0, 1)."""
    norm = alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()
    return (alpha - 1) * share.log() + (beta - 1) * (-share).log1p() - norm


def beta_entropy(alpha: Tensor, beta: Tensor) -> Tensor:
    """Differential entropy (R,)."""
    norm = alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()
    total = (alpha + beta - 2) * (alpha + beta).digamma()
    return norm - (alpha - 1) * alpha.digamma() - (beta - 1) * beta.digamma() + total


def choice_log_prob(choice: Tensor, logits: Tensor) -> Tensor:
    """Log probability (R,) of the choices (R,) int64 among (R, C)."""
    return logits.log_softmax(1).gather(1, choice[:, None])[:, 0]


def choice_entropy(logits: Tensor) -> Tensor:
    """(R,)."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def start_logits(choices: int, explored: float) -> list[float]:
    """Biases with which choice 0 has probability 1 - explored, and the others the rest in equal parts."""
    return [math.log(1 - explored), *[math.log(explored / (choices - 1))] * (choices - 1)]


class Dice:
    """Random choices of samples, one generator each: no sample's depend on which others there are, or in what order.

    Args:
        seeds: of the samples.
    """

    def __init__(self, seeds: list[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def choices(self, samples: Tensor, logits: Tensor) -> Tensor:
        """(R,) int64, drawn from (R, C) logits for these samples (R,)."""
        drawn = [torch.rand((), generator=self._generators[b], dtype=torch.float64) for b in samples.tolist()]
        edges = logits.double().softmax(1).cumsum(1).cpu()
        places = (torch.stack(drawn)[:, None] >= edges).sum(1)
        return places.clamp_max(logits.shape[1] - 1).to(logits.device)

    def shares(self, samples: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """(R,) drawn from these Betas for these samples, kept INSIDE."""
        rates = torch.stack([alpha, beta], 1).double().cpu()
        own = [self._generators[b] for b in samples.tolist()]
        # torch.distributions takes no generator.
        drawn = [torch._standard_gamma(rate, g) for rate, g in zip(rates, own, strict=True)]  # type: ignore[reportPrivateImportUsage]
        gammas = torch.stack(drawn)
        return (gammas[:, 0] / gammas.sum(1)).clamp(INSIDE, 1 - INSIDE).to(alpha)
