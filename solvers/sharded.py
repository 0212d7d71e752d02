"""The points of a question shared out to processes: each evaluates some of them, and all hear of all slopes."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from ..denoisers.protocol import Denoiser
from .answers import MakeAnswer, batched
from .walk import Answer, Ask


def sharded(group: dist.ProcessGroup | None = None, answer: MakeAnswer = batched) -> MakeAnswer:
    """Answers in which each rank of a group evaluates its share of the K points, then one all-gather of the slopes.

    All ranks of the group solve the same samples: the same noise, rule, sigmas and denoiser. Samples are sharded beside
    the points by a second axis of processes: rank (i, j) of a `DeviceMesh` solves the samples of part i, and passes the
    group of its j. Each rank has ceil(K / ranks) points or one fewer, none where there are more ranks than points. What
    is sent per question is K B states in the dtype of the noise.

    Args:
        group: of torch.distributed; None: all processes.
        answer: how each rank evaluates its own points.

    Raises:
        ValueError: by the answer, when ranks ask different questions, or where gradients are enabled, which do not pass
            between processes.
    """

    def make(denoiser: Denoiser) -> Answer:
        own, compared = answer(denoiser), set[torch.Size]()

        def sharing(ask: Ask) -> Tensor:
            points = ask.points
            if torch.is_grad_enabled():  # said by all ranks, those without points of their own included
                raise ValueError("gradients do not pass between processes: solve in torch.no_grad(), or batched")
            if points.shape not in compared:  # a rank with other samples would go on with a mixture of both
                _require_same(ask, group)
                compared.add(points.shape)
            rank, ranks = dist.get_rank(group), dist.get_world_size(group)
            counts = [len(part) for part in torch.arange(len(points)).tensor_split(ranks)]
            first = sum(counts[:rank])
            mine = slice(first, first + counts[rank])
            scale, guidance = (None if v is None else v[mine] for v in (ask.sigma_scale, ask.guidance))
            share = points.new_zeros(counts[0], *points.shape[1:])
            if counts[rank]:
                share[: counts[rank]] = own(
                    replace(ask, points=points[mine], sigma=ask.sigma[mine], sigma_scale=scale, guidance=guidance)
                )
            shares = [torch.empty_like(share) for _ in counts]
            dist.all_gather(shares, share, group)
            return torch.cat([part[:count] for part, count in zip(shares, counts, strict=True)])

        return sharing

    return make


def _require_same(ask: Ask, group: dist.ProcessGroup | None) -> None:
    """All ranks ask this question; looked at once for each shape, since that waits for the device."""
    total = repr(float(ask.points.detach().double().sum()))  # as text NaN equals itself
    mine = (tuple(ask.points.shape), str(ask.points.dtype), total, ask.sigma.tolist())
    asked: list[object] = [None] * dist.get_world_size(group)
    dist.all_gather_object(asked, mine, group)
    for rank, other in enumerate(asked):
        if other != mine:
            raise ValueError(
                f"rank {dist.get_rank(group)} asks for slopes at (shape, dtype, sum of the states, sigma) = {mine}, "
                f"rank {rank} at {other}: give all ranks of the group the same noise, rule and sigmas"
            )
