"""A dry run's estimate is held against a run that counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd import GaussianMixture
from epd.distill import cost
from epd.distill.plan import make_plan
from epd.distill.train import Trainer, distill
from epd.runs.processes import Workers


class Counting(GaussianMixture):
    """The toy model, counting the rows that it is asked for."""

    rows = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows += len(x)
        return super().__call__(x, sigma)


def counting() -> Counting:
    toy = toy_mixture()
    return Counting(toy.means.reshape(-1, 1, 2, 2), 0.5, sigma_min=toy.sigma_min, sigma_max=toy.sigma_max, name="toy")


@pytest.mark.parametrize("teacher", ["exact", "heun", "dpm2", "ipndm", "dpmpp", "euler"])
@pytest.mark.parametrize("optimizer", ["adam", "gauss-newton"])
def test_a_dry_runs_estimate_is_what_the_run_then_costs(teacher: str, optimizer: str, tmp_path: Path) -> None:
    """Pool and held-out samples fill their blocks, so that the teacher solves what is estimated, proof aside."""
    model = counting()
    config = toy_config(
        teacher=teacher, optimizer=optimizer, pool=256, validation=256, batch=128, validate_every=10**6,
        schedule="polynomial", iterations=6,
    )  # fmt: skip
    plan = make_plan(model, config)
    estimated = cost.estimate(model, plan)
    model.rows = 0
    Trainer(model, plan, None, tmp_path, Workers())
    solved, model.rows = model.rows, 0
    # An adaptive integrator takes what it takes; the proof of what was solved is a few evaluations of each sample.
    assert solved / estimated.teacher_evaluations == pytest.approx(1, rel=0.35 if teacher == "exact" else 0.15)
    list(distill(model, plan, cache=tmp_path))
    measured = 3 if optimizer == "adam" else 2  # before and after; the first start once more, which is not to be lost
    proof = plan.tables[0].nfe * config.validation * measured + 4 * 512
    trained = model.rows - proof
    # A backward pass is estimated as two evaluations, and Gauss-Newton's trials after the first are not counted.
    factor = 3 if optimizer == "adam" else 1
    assert factor * trained / estimated.training_evaluations == pytest.approx(1, rel=0.35)


def test_estimated_seconds_are_evaluations_over_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "rows_per_second", lambda model, rows, dtype: 1000.0)
    model = toy_mixture()
    estimated = cost.estimate(model, make_plan(model, toy_config()))
    total = estimated.training_evaluations + estimated.teacher_evaluations
    assert total > 0 and estimated.seconds == total / 1000
    assert estimated.parameters == len(torch.zeros(estimated.parameters)) > 0
    assert estimated.memory > 8 * (256 + 32) * 4  # the pool's and a part's noise alone
