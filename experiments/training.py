"""What the trainings of embedded networks share: optimiser, running average, checkpoints, record."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ..runs.environment import environment

Parts = TypeVar("Parts", bound=nn.Module)


@dataclass(frozen=True)
class TrainingConfig:
    """What every training depends on, beside the torch version. One thread: sums keep their order."""

    seed: int = 0
    iterations: int = 11_000
    batch: int = 32
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.01  # of matrices
    ema: float = 0.998


class Training(ABC, Generic[Parts]):
    """Network, running average and optimiser; `advance` makes one step and returns its loss.

    Args:
        parts: what is trained.
        generator: of everything that is drawn.
    """

    def __init__(self, config: TrainingConfig, parts: Parts, generator: torch.Generator) -> None:
        self.config, self.parts, self.generator, self.done = config, parts, generator, 0
        self.average = copy.deepcopy(parts).requires_grad_(False)
        matrices = [p for p in parts.parameters() if p.ndim > 1]
        others = [p for p in parts.parameters() if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )

    @abstractmethod
    def loss(self) -> Tensor:
        """Of a fresh batch."""

    def advance(self) -> float:
        config, loss = self.config, self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * self.rate()
        self.optimizer.step()
        blend = min(config.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.parts.parameters(), strict=True):
                mean.lerp_(value, 1 - blend)
        self.done += 1
        return loss.item()

    def rate(self) -> float:
        """Learning rate factor: linear warm-up, constant, then from half of the steps on a straight line to zero."""
        return min((self.done + 1) / self.config.warmup, 1.0, 2 * (1 - self.done / self.config.iterations))

    def tensors(self) -> dict[str, Tensor]:
        """All that changes from step to step, in place."""
        out = {f"parts.{name}": value.data for name, value in self.parts.named_parameters()}
        out |= {f"average.{name}": value for name, value in self.average.named_parameters()}
        for number, parameter in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            state = self.optimizer.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            out |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        return out


def train(trainer: Training[Any], checkpoint: Path) -> dict[str, Any]:
    """Advances to the end, from the checkpoint where there is one; the record: configuration, losses and CPU time.

    Raises:
        ValueError: where the checkpoint is of another configuration.
    """
    config, running, record, spent = trainer.config, math.nan, [], 0.0
    if checkpoint.exists():
        kept, identity = load_checkpoint(checkpoint)
        if identity != asdict(config):
            raise ValueError(f"{checkpoint} is of another configuration, {identity}: give another --run")
        for name, value in trainer.tensors().items():
            value.copy_(kept.tensors[name])
        trainer.generator.set_state(kept.tensors["generator"])
        trainer.done, running, record, spent = (kept.numbers[n] for n in ("done", "running", "record", "cpu_seconds"))
    start = time.process_time() - spent
    while trainer.done < config.iterations:
        loss = trainer.advance()
        running = loss if trainer.done == 1 else 0.99 * running + 0.01 * loss
        if trainer.done % max(config.iterations // 44, 1) and trainer.done < config.iterations:
            continue
        spent = time.process_time() - start
        record.append({"step": trainer.done, "loss": running, "cpu_seconds": round(spent, 1)})
        left = spent / trainer.done * (config.iterations - trainer.done)
        print(f"{trainer.done:6d}  loss {running:.4f}  {spent:5.0f} CPU s, {left:5.0f} left", flush=True)
        numbers = {"done": trainer.done, "running": running, "record": record, "cpu_seconds": spent}
        tensors = {**trainer.tensors(), "generator": trainer.generator.get_state()}
        save_checkpoint(checkpoint, Checkpoint(tensors, numbers), asdict(config))
    return {"config": asdict(config), "environment": environment(), "record": record}
