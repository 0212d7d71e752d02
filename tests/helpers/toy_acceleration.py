"""Learning to accelerate the toy model, in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from epd.accelerators.heads_file import load_heads
from epd.rl.acceleration import AccelerationTrainer
from epd.rl.acceleration_config import AccelerationConfig
from epd.runs.checkpoint import load_checkpoint
from helpers.toy_refine import toy_task


def toy_acceleration_config(**changes: object) -> AccelerationConfig:
    """Seconds, not minutes."""
    small: dict[str, object] = {
        "steps": 4, "grid": 6, "schedule": "logsnr", "groups": 4, "group_size": 4, "epochs": 2, "held_out": 64,
        "evaluate_every": 2, "channels": 4, "dtype": "float64", "decay": 0.8, "lr": 0.01,
    }  # fmt: skip
    return AccelerationConfig.model_validate({**small, **changes})


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.double().mean((1, 2, 3))


def constant(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.ones(len(images), dtype=torch.float64)


def trainer_of(reward: object = brightness, **changes: object) -> AccelerationTrainer:
    return AccelerationTrainer(toy_task({"reward": reward}), None, toy_acceleration_config(**changes))


def assert_same(first: Path, second: Path) -> None:
    """Bit for bit; the entries of a safetensors header have no order."""
    for name in ("solver.json", "report.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    one, other = (load_checkpoint(folder / "checkpoint.safetensors")[0] for folder in (first, second))
    assert one.numbers == other.numbers and one.numbers["acceleration"]["steps"] > 0
    assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    own, others = (load_heads(folder / "policy.safetensors")[0].state_dict() for folder in (first, second))
    assert all(torch.equal(value, others[name]) for name, value in own.items())
