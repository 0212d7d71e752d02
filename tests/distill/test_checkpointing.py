"""Checkpointing: what an update keeps in memory does not grow with the number of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config
from torch import Tensor

from epd import GaussianMixture
from epd.denoisers.live_memory import LiveMemory
from epd.distill.plan import make_plan
from epd.distill.train import distill

SHAPE = (1, 4, 4)
WIDTH, DEPTH = 512, 6  # a call's activations are thousands of states, as those of real networks


class Deep(GaussianMixture):
    """The exact mixture and the small output of a network that keeps WIDTH x DEPTH states for its gradient."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        inside = x.expand(-1, WIDTH, -1, -1)
        for layer in range(DEPTH):
            inside = torch.sin(inside + layer)
        return super().__call__(x, sigma) + 1e-3 * inside.mean(1, keepdim=True)


def peak(calls: int, checkpointing: bool) -> tuple[int, int]:
    """Steps, and live bytes of one update of the run that a second time has its teacher on disk."""
    means = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Deep(means, 0.5, sigma_min=0.02, sigma_max=20.0, name="deep")
    config = toy_config(
        family="epd", calls=calls, optimizer="adam", iterations=1, screening=1, pool=4, batch=4, accumulate=1,
        validation=1, dtype="float32", checkpointing=checkpointing, teacher="heun",
    )  # fmt: skip
    plan = make_plan(model, config)
    list(distill(model, plan))
    with LiveMemory() as memory:
        list(distill(model, plan))
    return plan.tables[0].num_steps, memory.peak


@pytest.mark.slow
def test_the_peak_of_an_update_is_flat_in_the_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path))
    (few, short), (many, long) = peak(5, True), peak(39, True)
    assert (few, many) == (3, 20)
    assert abs(long / short - 1) < 0.1
    assert peak(5, False)[1] > 2 * short  # what checkpointing is for: there it holds all calls of a trajectory
