"""A refinement of a table of the toy model that takes a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from epd import Table
from epd.denoisers.rows import limit_rows
from epd.rl.closeness import Closeness
from epd.rl.config import RefineConfig
from epd.rl.task import Task, score_of
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
