"""Refinement against an optimum that is known: what distillation finds with the same few numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from helpers.toy_refine import toy_refine_config

from epd import Table
from epd.denoisers.rows import limit_rows
from epd.distill.plan import make_plan
from epd.distill.run import table_at
from epd.distill.train import distill
from epd.rl.closeness import Closeness
from epd.rl.parametrisation import PARAMETRISATIONS, Parametrisation
from epd.rl.refine import refine
from epd.rl.run import refined
from epd.rl.task import Draws, Task


@pytest.mark.slow
def test_from_a_poor_table_rewards_lead_to_the_distilled_optimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls with memory; learned are the level between them and how the second step weighs its two slopes."""
    monkeypatch.setitem(PARAMETRISATIONS, "ours", Parametrisation(("sigmas",), ("update",)))
    model = limit_rows(toy_mixture())
    poor = Table([20.0, 4.0, 0.02], [[]] * 2, [[]] * 2, anchor=[1.0, 1.5], memory=[[0.0], [-0.5]], calls=1)
    fresh = Draws(tuple(range(1024)), tuple(range(1024)))
    exact = Closeness(model, 1e-5)
    task = Task(model, {"closeness": Closeness(model, 1e-3)})

    def closeness_of(table: Table) -> float:
        return float(exact(task.roll_out(table.coefficients(), fresh, torch.float64)).mean())

    learn = ("sigmas", "anchor", "memory")
    plan = make_plan(model, toy_config(calls=2, pool=1024, batch=512, iterations=60, learn=learn), poor)
    *_, last = distill(model, plan, cache=tmp_path)
    best = closeness_of(table_at(model, plan, last.state))

    config = toy_refine_config(
        steps=40, groups=8, group_size=16, epochs=4, held_out=256, evaluate_every=20, converged=0, std=0.1, lr=0.03
    )
    *_, update = refine(task, poor, config)
    table = refined(task, poor, config, update.state)
    assert table.provenance.parent == poor.digest
    assert closeness_of(poor) < 2.5 * best  # closeness is minus a distance
    assert closeness_of(table) > 1.1 * best
