"""How an evaluation draws its samples and what it keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers.checks import middle_sigma
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model, coefficient_device
from ..denoisers.rows import RowLimited
from ..rl.reward import Reward, measured
from ..solvers.answers import batched
from ..solvers.solve import solve
from .batches import Counting
from .compare import ends_identity
from .extractors import Extractor, pictures_of
from .reference import fixed_picture
from .rivals import Rival
from .shards import SHARD, same_answers


def network_probe(model: Model, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """One evaluation of the network: another one under the same name answers otherwise."""
    level = torch.tensor(middle_sigma(model), dtype=torch.float64, device=coefficient_device(model.device))
    noise = unit_noise([seed], model.shape, dtype, model.device)
    return {"denoised": model.for_seeds([seed])(noise * level.to(noise.dtype), level).float().cpu()}


@dataclass(frozen=True, eq=False)
class Drawing:
    """How samples are drawn and seen: all that the solvers share.

    Args:
        texts: seeds -> prompts, for rewards.
        picture: (3, H, W) of each.
        conditions: what else the model was asked for, ready for JSON.
    """

    model: RowLimited
    extractor: Extractor
    rewards: Mapping[str, Reward]
    texts: Callable[[Sequence[int]], list[str]]
    seed: int
    dtype: torch.dtype
    picture: tuple[int, ...]
    conditions: Mapping[str, object]

    def pictures(self, solver: Rival, seeds: Sequence[int]) -> tuple[Tensor, Counting]:
        """Pictures (B, 3, H, W) of these seeds, and what they cost."""
        noise = unit_noise(seeds, self.model.shape, self.dtype, self.model.device)
        denoiser = self.model.for_seeds(seeds)
        counting = Counting(batched(denoiser))
        end = solve(solver.rule, denoiser, noise, solver.sigmas, lambda _: counting)
        return pictures_of(self.model.decode(end)), counting

    def rows(self, solver: Rival, part: range) -> dict[str, Tensor]:
        """What is kept of samples number `part`, solved together: features (B, F), costs (B, 2), scores (B, R)."""
        seeds = [self.seed + i for i in part]
        pictures, counted = self.pictures(solver, seeds)
        scores = [measured(reward, pictures, self.texts(seeds)) for reward in self.rewards.values()]
        return {
            "features": self.extractor(pictures),
            "costs": torch.tensor([[counted.calls, counted.points]]).expand(len(seeds), 2),
            "scores": torch.stack(scores, 1) if scores else torch.zeros(len(seeds), 0),
        }

    def probe(self) -> dict[str, Tensor]:
        """One evaluation of the network, of the extractor and of each reward: others under the same names answer
        otherwise. A reward that is random proves nothing by its answers.
        """
        picture, texts = fixed_picture(self.picture), self.texts([self.seed])
        answers = {"features": self.extractor(picture)}
        for name, reward in self.rewards.items():
            one, again = (measured(reward, picture, texts) for _ in range(2))
            answers[f"reward {name}"] = one if same_answers(one, again) else torch.zeros_like(one)
        return {**network_probe(self.model, self.seed, self.dtype), **answers}

    def identity(self, solver: Rival) -> dict[str, Any]:
        """Everything that changes a sample's features or scores beside its number, ready for JSON.

        Not the batch, which changes rounding only: a run that ran out of memory goes on with a smaller one.
        """
        texts = self.texts(range(self.seed, self.seed + SHARD)) if self.rewards else []
        return {
            **ends_identity(self.model, self.dtype), "seed": self.seed, "conditions": dict(self.conditions),
            "solver": solver.identity, **self.extractor.identity(), "rewards": list(self.rewards), "texts": texts,
        }  # fmt: skip
