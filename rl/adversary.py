"""The discriminator's place in learning to accelerate: it sees every update's pictures, and learns after the policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.convert_parameters import parameters_to_vector

from ..runs.processes import Workers
from ..solvers.table import Table
from .acceleration_config import AccelerationConfig
from .discriminator import Discriminator, Features, features_of
from .moments import load_vector, restore, stored
from .task import Draws, Rollout, Task


@dataclass(frozen=True)
class Pair:
    """Features of a part's pictures: of the plain solver, (R, F), and of the policy, (B, F)."""

    plain: Tensor
    accelerated: Tensor


class Adversary:
    """A discriminator between the plain solver's pictures and the policy's, by features.

    Args:
        features: of pictures.
        table: the plain solver.
    """

    def __init__(
        self, task: Task, table: Table, features: Features, config: AccelerationConfig, workers: Workers
    ) -> None:
        self.task, self.table, self.features, self.config, self.workers = task, table, features, config, workers
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        size = features_of(features, task.model.decode(torch.zeros(1, *task.model.shape, device=task.model.device)))
        self.discriminator = Discriminator(size.shape[1], config.seed)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=config.discriminator_lr, foreach=False)

    def first(self) -> Tensor:
        """(3, W) parameters and Adam's moments at the start."""
        size = self.discriminator.first.in_features
        vector = parameters_to_vector(Discriminator(size, self.config.seed).parameters()).detach()
        return torch.stack([vector, torch.zeros_like(vector), torch.zeros_like(vector)])

    def load(self, values: Tensor) -> None:
        """Takes up what `first` or `learned` returned."""
        load_vector(self.discriminator, values[0])

    def seen(self, rollout: Rollout) -> Tensor:
        """(B, F) of the policy's pictures."""
        return features_of(self.features, rollout.images)

    def plain(self, draws: Draws) -> Tensor:
        """(R, F) of the plain solver's pictures of the same conditions and noise, each once."""
        different = list(dict.fromkeys(zip(draws.conditions, draws.noises, strict=True)))
        conditions, noises = (tuple(values) for values in zip(*different, strict=True))
        rollout = self.task.roll_out(self.table.coefficients(), Draws(conditions, noises), self.dtype)
        return features_of(self.features, rollout.images)

    def learned(self, parts: dict[int, Pair], values: Tensor, steps: int) -> tuple[Tensor, int, float]:
        """One step of Adam on an update's pictures: (3, W), steps so far, and the cross entropy before."""
        restore(self.optimizer, self.discriminator, values[1:], steps)
        parameters = list(self.discriminator.parameters())

        def part(i: int) -> Tensor:
            loss = self.discriminator.loss(parts[i].plain, parts[i].accelerated)
            gradients = torch.autograd.grad(loss, parameters)
            return torch.cat([*(g.flatten().double() for g in gradients), loss.detach()[None].double()])

        sizes = [p.numel() for p in parameters]
        *gradients, loss = self.workers.mean(self.config.accumulate, sum(sizes) + 1, part).split([*sizes, 1])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.reshape(parameter.shape).to(parameter.dtype)
        self.optimizer.step()
        vector, moments, steps = stored(self.optimizer, self.discriminator)
        return torch.cat([vector[None], moments]), steps, float(loss)
