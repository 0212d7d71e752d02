"""A table is learned for the accelerated network, by a teacher that is not, and says so."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config
from torch import Tensor, nn

import epd
from epd.commands.inputs import fits
from epd.commands.models import load_model
from epd.denoisers.preconditioning import edm
from epd.denoisers.rows import limit_rows
from epd.distill.plan import make_plan
from epd.distill.portions import portions
from epd.distill.teacher import Teacher
from epd.distill.train import distill
from epd.pipelines.options import ModelOptions
from epd.solvers.questions import unannounced

REUSE = epd.Reuse((1,))
RECORDED = ({"name": "reuse", "steps": [1], "where": "all"},)


class Net(nn.Module):
    """Something smooth and nonlinear."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return torch.tanh(sample + 0.1 * timestep.reshape(-1, 1, 1, 1).to(sample.dtype))


def toy() -> epd.NetworkDenoiser:
    net = Net()
    return epd.NetworkDenoiser(
        lambda x, t, rows: net(x, t), edm(0.5), (1, 2, 2), 0.02, 20.0, name="toy", dtype=torch.float64, networks=(net,)
    )


@pytest.mark.parametrize("optimizer", ["gauss-newton", "adam"])
def test_a_table_records_what_it_was_learned_with(tmp_path: Path, optimizer: str) -> None:
    model = toy()
    tables = []
    for accelerators in ((), (REUSE,)):
        epd.accelerate(model, *accelerators)
        limited = limit_rows(model)
        plan = make_plan(limited, toy_config(optimizer=optimizer, iterations=2))
        tables.append(list(distill(limited, plan, cache=tmp_path))[-1].table)
    assert tables[0].provenance.accelerators == () and tables[1].provenance.accelerators == RECORDED
    assert tables[0].digest != tables[1].digest
    again = epd.Table.from_dict(tables[1].to_dict())
    assert again.provenance == tables[1].provenance
    assert "accelerators" not in tables[0].to_dict()["provenance"]


def test_the_teacher_is_the_network_as_it_is(tmp_path: Path) -> None:
    model, sigmas = toy(), torch.tensor([20.0, 5.0, 1.0, 0.1], dtype=torch.float64)
    config = toy_config(teacher="dpmpp", teacher_multiplier=4)
    dense = Teacher(model, config, sigmas, tmp_path / "dense").states([2**30, 2**30 + 1])
    epd.accelerate(model, epd.Reuse((1, 2, 3)))
    assert torch.equal(Teacher(model, config, sigmas, tmp_path / "on").states([2**30, 2**30 + 1]), dense)
    noise = epd.unit_noise([0], model.shape, torch.float64)
    reused = epd.solve(epd.rules.euler(), model, noise, sigmas)
    with unannounced():
        whole = epd.solve(epd.rules.euler(), model, noise, sigmas)
    assert torch.equal(whole, epd.solve(epd.rules.euler(), epd.decelerate(model), noise, sigmas))
    assert not torch.equal(whole, reused)


def test_calls_that_would_be_made_again_are_refused() -> None:
    model = epd.accelerate(toy(), REUSE)
    limited = limit_rows(model)
    config = toy_config(optimizer="adam", checkpointing=True)
    with pytest.raises(ValueError, match="recomputed in the backward pass.*gauss-newton"):
        portions(limited, make_plan(limited, config))


def test_gradients_pass_through_reused_slopes() -> None:
    """Against differences: the reused slope is that of a state that depends on the noise."""
    model = epd.accelerate(toy(), REUSE)
    sigmas = torch.tensor([5.0, 2.0, 1.0, 0.1], dtype=torch.float64)
    noise = epd.unit_noise([0, 1], model.shape, torch.float64).requires_grad_()

    def end(x: Tensor) -> Tensor:
        return epd.solve(epd.rules.heun(), model, x, sigmas)

    assert torch.autograd.gradcheck(end, (noise,))


def test_a_model_by_name_is_accelerated_and_a_table_of_others_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model = load_model("digits", ModelOptions(accelerate=("reuse:steps=1",)))
    table = epd.Table([80.0, 1.0, 0.1], [[0.5], [0.5]], [[1.0], [1.0]])
    own = dataclasses.replace(table, provenance=epd.Provenance(accelerators=RECORDED))
    with caplog.at_level(logging.WARNING, logger="epd"):
        fits(own, model, "mine")
        assert not caplog.records
        fits(table, model, "plain")
    assert "plain was learned with the accelerators []" in caplog.text
    with pytest.raises(ValueError, match="'warp' is unknown"):
        load_model("digits", ModelOptions(accelerate=("warp",)))
