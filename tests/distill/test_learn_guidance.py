"""Learning how much guidance each evaluation has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.guided import classes, scaled
from helpers.tables import FAMILIES
from helpers.toy_models import toy_config
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.denoisers.shapes_exact import shapes_exact
from epd.distill.config import GUIDANCE
from epd.distill.families import FAMILIES as LEARNED
from epd.distill.gauss_newton import EPS, first_reached
from epd.distill.parameters import Parameters
from epd.distill.plan import make_plan
from epd.distill.run import numbers_of, table_at
from epd.distill.train import distill
from epd.runs.table_picture import table_picture
from epd.solvers.exact import converged
from epd.solvers.parallel import parallel


def test_no_family_learns_it_unless_asked() -> None:
    assert not any({*GUIDANCE} & {*family.learn} for family in LEARNED.values())
    model = classes()
    assert not {*GUIDANCE} & {*make_plan(model, toy_config()).learn}
    assert make_plan(model, toy_config(learn_guidance=True)).learn[-2:] == GUIDANCE
    plan = make_plan(model, toy_config(learn=("guidance_scale", "nodes"), learn_guidance=True))
    assert plan.learn == ("guidance_scale", "nodes", "anchor_guidance")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_is_its_own_start_and_comes_back(name: str) -> None:
    """From factors of 1 exactly; what no evaluation has is no number."""
    table = FAMILIES[name]
    parameters = Parameters.of(table, GUIDANCE)
    c = parameters.coefficients(parameters.start)
    assert c.guidance_scale is not None and bool((c.guidance_scale == 1).all())
    assert parameters.table(parameters.start, table.provenance) == table
    assert len(parameters.start) == table.nfe
    back = Parameters.of(scaled(table), GUIDANCE)
    found = back.table(back.start, table.provenance)
    for field in GUIDANCE:
        np.testing.assert_allclose(getattr(found, field), getattr(scaled(table), field), rtol=1e-9)
    bounds = parameters.coefficients(torch.full_like(parameters.start, 1e3))
    assert float(bounds.anchor_guidance.max()) <= float(np.e) * (1 + 1e-9)  # type: ignore[union-attr]
    assert ("guidance_scale/step0/0" in numbers_of(scaled(table))) == bool(table.num_nodes)
    assert not any("guidance" in tag for tag in numbers_of(table))
    # 24 pixels for each factor, and the gap before them.
    wider = table_picture(scaled(table)).shape[1] - table_picture(table).shape[1]
    assert wider == 24 * (2 + table.num_nodes)


def test_gradients_are_differences_through_a_whole_trajectory() -> None:
    table, model = FAMILIES["mixed calls"], classes().for_seeds([0, 1, 2])
    parameters, noise = Parameters.of(table, GUIDANCE), unit_noise([0, 1, 2], (2, 3), torch.float64)

    def end(vector: Tensor) -> Tensor:
        c = parameters.coefficients(vector)
        return epd.solve(parallel(c), model, noise, c.sigmas, check=False)

    start = parameters.start + torch.linspace(-1, 1, len(parameters.start), dtype=torch.float64)
    assert torch.autograd.gradcheck(end, start.requires_grad_())


def test_gauss_newton_knows_which_call_a_factor_reaches() -> None:
    table = FAMILIES["anchor and memory"]  # two calls a step
    parameters = Parameters.of(table, GUIDANCE)
    reached = first_reached(parameters, parameters.start, EPS["float64"])
    steps = {name: call for name, call in zip(parameters.names, reached, strict=True)}
    assert [steps[f"anchor_guidance/{n}"] for n in range(4)] == [0, 2, 4, 6]
    assert [steps[f"guidance_scale/{n}/1"] for n in range(4)] == [1, 3, 5, 7]


@pytest.mark.parametrize("optimizer", ["gauss-newton", "soap"])
def test_learned_factors_come_nearer_to_the_teacher(optimizer: str, tmp_path: Path) -> None:
    """Three Euler steps of guidance 3, only whose guidance may change: they all overshoot at first."""
    model, table = classes("flow"), epd.Table([1.0, 0.7, 0.3, 0.05], [[]] * 3, [[]] * 3, anchor=[1.0] * 3, calls=1)
    config = toy_config(
        calls=3, learn=("anchor_guidance",), optimizer=optimizer, iterations=20, lr=0.3, validate_every=5
    )
    plan = make_plan(model, config, table)
    updates = list(distill(model, plan, cache=tmp_path))
    learned = table_at(model, plan, updates[-1].state)
    assert learned.scales_guidance and learned.provenance.config["learn"] == ["anchor_guidance"]
    seeds = range(10**6, 10**6 + 64)
    noise, bound = unit_noise([*seeds], model.shape, torch.float64), model.for_seeds(seeds)
    exact = converged(bound, noise, [1.0, 0.05])[-1]
    before, after = (
        float((epd.solve(t.rule(), bound, noise, t.sigmas) - exact).square().mean()) for t in (table, learned)
    )
    assert after < 0.97 * before


def test_on_shapes_exact_the_loss_falls(tmp_path: Path) -> None:
    """From Euler, whose guidance alone may change."""
    model = shapes_exact("flow", guidance=3.0)
    table = epd.Table([1.0, 0.6, 0.25, 0.002], [[]] * 3, [[]] * 3, anchor=[1.0] * 3, calls=1)
    config = toy_config(
        calls=3, learn=("anchor_guidance",), optimizer="soap", iterations=6, lr=0.3, pool=32, batch=16, accumulate=1,
        validation=32, validate_every=3, dtype="float32", teacher="heun",
    )  # fmt: skip
    updates = list(distill(model, make_plan(model, config, table), cache=tmp_path))
    measured = [update.validation for update in updates if update.validation is not None]
    assert min(measured) < 0.995 * measured[0]


def test_models_without_guidance_are_refused_before_anything_is_computed(cache: Path) -> None:
    config = toy_config(learn_guidance=True)
    with pytest.raises(ValueError, match="classes is to be scaled, and it is bound with guidance 1"):
        make_plan(classes(guidance=1.0), config)
    own = epd.own_model(lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1) ** 2), (2, 3), 0.05, 40.0)
    with pytest.raises(ValueError, match="no at_guidance"):
        epd.distill(own, config)
    with pytest.raises(ValueError, match="no at_guidance"):
        make_plan(own, toy_config(), scaled(FAMILIES["epd, AFS"]))
    assert not cache.exists()
