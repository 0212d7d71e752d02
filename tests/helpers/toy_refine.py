"""A refinement of a table of the toy model that takes a second; as a process: python toy_refine.py OUT CHANGES."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from epd import Table
from epd.denoisers.rows import limit_rows
from epd.rl.closeness import Closeness
from epd.rl.config import RefineConfig
from epd.rl.task import Task, score_of

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.toy_models import toy_mixture


def toy_table() -> Table:
    """Three calls with two remembered slopes, far from the best."""
    update = [[0.0, 0.0], [-0.5, 0.0], [-0.5, 0.0]]
    return Table(
        [20.0, 3.0, 0.6, 0.02], [[]] * 3, [[]] * 3, anchor=[1.0, 1.5, 1.5], memory=update, calls=1, consistent=False
    )


def toy_refine_config(**changes: object) -> RefineConfig:
    """Seconds, not minutes."""
    small: dict[str, object] = {
        "steps": 6, "groups": 4, "group_size": 8, "epochs": 2, "held_out": 64, "evaluate_every": 2, "converged": 32,
        "dtype": "float64",
    }  # fmt: skip
    return RefineConfig.model_validate({**small, **changes})


def toy_task(rewards: Mapping[str, object] | None = None) -> Task:
    """Closeness to the converged end; or rewards of one's own."""
    model = limit_rows(toy_mixture())
    if rewards is None:
        return Task(model, {"closeness": Closeness(model, 1e-3)})
    return Task(model, {name: score_of(Named(name, reward)) for name, reward in rewards.items()})


class Named:
    """A function as a reward."""

    def __init__(self, name: str, function: object) -> None:
        self.name, self.function = name, function

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images, prompts)  # type: ignore[operator]


if __name__ == "__main__":
    from epd.rl.run import run_refine
    from epd.runs import follow
    from epd.runs.processes import Workers

    torch.set_num_threads(1)
    follow.CHECKPOINT_SECONDS = 0.0
    out, config = Path(sys.argv[1]), toy_refine_config(**json.loads(sys.argv[2]))
    run_refine(toy_task(), toy_table(), config, out, resume=(out / "checkpoint.safetensors").exists())
    workers = Workers.of_accelerate()
    os.write(1, f"{workers.rank}/{workers.count}\n".encode())
    workers.end()
