"""The registry of rules and schedules: what a name makes, and that every schedule ends where the model does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import get_args

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

import epd
from epd.commands.options import Sample
from epd.commands.sample import sigmas_of
from epd.denoisers.protocol import Path
from epd.distill.config import DistillConfig
from epd.distill.starts import Start, start_sigmas, starts
from epd.evaluation.handmade import candidate_schedules, handmade
from epd.solvers import registry, rules, schedules
from epd.solvers.registry import Ends, RuleSettings, make_rule, make_sigmas, most_accurate


def solved(rule: epd.Rule, steps: int = 6) -> Tensor:
    model = toy_mixture()
    noise = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return epd.solve(rule, model, noise, schedules.polynomial(steps, model.sigma_min, model.sigma_max))


MADE = {
    "euler": rules.euler(),
    "heun": rules.heun(),
    "dpm2": rules.dpm2(),
    "ipndm": rules.ipndm(4),
    "ipndm1": rules.ipndm(1),
    "ipndm2": rules.ipndm(2),
    "ipndm3": rules.ipndm(3),
    "ipndm4": rules.ipndm(4),
    "dpmpp": rules.dpmpp(2),
    "dpmpp1": rules.dpmpp(1),
    "dpmpp2": rules.dpmpp(2),
    "dpmpp3": rules.dpmpp(3),
}


@pytest.mark.parametrize("name", sorted({*registry.RULES, *registry.NUMBERED}))
def test_a_name_makes_its_rule(name: str) -> None:
    assert torch.equal(solved(make_rule(name)), solved(MADE[name]))


def test_settings_reach_the_rule() -> None:
    expected = {
        ("ipndm", RuleSettings(order=3, uneven=True)): rules.ipndm(3, "computed"),
        ("ipndm", RuleSettings(order=2, afs=True)): rules.ipndm(2, afs=True),
        ("dpmpp", RuleSettings(order=3, num_steps=6, afs=True)): rules.dpmpp(3, num_steps=6, afs=True),
        ("dpmpp3", RuleSettings(order=1)): rules.dpmpp(3),
        ("heun", RuleSettings(afs=True)): rules.heun(afs=True),
        ("dpm2", RuleSettings(afs=True)): rules.dpm2(afs=True),
        ("euler", RuleSettings(afs=True)): rules.euler(afs=True),
    }
    for (name, settings), rule in expected.items():
        assert torch.equal(solved(make_rule(name, settings)), solved(rule)), (name, settings)
    assert torch.equal(solved(most_accurate("ipndm")), solved(rules.ipndm(4, "computed")))
    assert torch.equal(solved(most_accurate("dpmpp")), solved(rules.dpmpp(3)))
    with pytest.raises(ValueError, match="rule = 'ipndm5' is unknown: give one of euler"):
        make_rule("ipndm5")
    with pytest.raises(ValueError, match="order = 7 must be 1, 2, 3 or 4"):
        make_rule("ipndm", RuleSettings(order=7))


def test_every_name_is_a_choice_of_the_command_and_the_trainer() -> None:
    rule, schedule = (Sample.model_fields[name].annotation for name in ("rule", "schedule"))
    assert set(get_args(get_args(rule)[0])) == {*registry.NUMBERED}
    assert set(get_args(get_args(schedule)[0])) == {*registry.SCHEDULES}
    assert set(get_args(DistillConfig.model_fields["teacher"].annotation)) == {"exact", *registry.RULES}
    assert {solver.group for solver in handmade("ve")} >= {row.group for row in registry.RULES.values()}


def test_the_choices_are_known_without_torch() -> None:
    code = "import sys, epd.commands.options, epd.solvers.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", registry.SCHEDULES)
@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("number", [None, 3.0])
def test_every_schedule_ends_where_it_is_told(name: str, path: Path, number: float) -> None:
    if registry.SCHEDULES[name].flow_only and path != "flow":
        return
    alphas = torch.linspace(0.9999, 0.98, 200, dtype=torch.float64).cumprod(0)
    sigmas = make_sigmas(name, 5, Ends(path, 0.02, 1.0, alphas), number)
    assert sigmas.shape == (6,) and (float(sigmas[0]), float(sigmas[-1])) == (1.0, 0.02)
    assert bool((sigmas.diff() < 0).all()) and sigmas.dtype == torch.float64


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_sample_compare_and_distill_agree_on_where_a_shifted_flow_ends(shift: float) -> None:
    model = toy_mixture("flow")
    assert model.sigma_min == 0.01
    # The ramp runs from 1 to the s with shift s / (1 + (shift - 1) s) = 0.01.
    last = 0.01 / (shift - (shift - 1) * 0.01)
    ramp = torch.linspace(1, last, 5, dtype=torch.float64)
    expected = shift * ramp / (1 + (shift - 1) * ramp)
    drawn = sigmas_of(Sample(rule="euler", schedule="flow", shift=shift), model, 4)
    compared = candidate_schedules("flow", model.sigma_min, model.sigma_max)[f"shift {shift:g}"](4)
    learned = start_sigmas(toy_config(), model, 4, Start("flow", shift))
    for sigmas in (drawn, compared, learned):
        torch.testing.assert_close(sigmas, expected, rtol=1e-12, atol=0)
        assert float(sigmas[-1]) == model.sigma_min


def test_only_a_schedule_that_has_a_number_is_given_one() -> None:
    config = toy_config(rho=3.0, shift=2.0)
    numbers = {"polynomial": 3.0, "flow": 2.0, "time_uniform": 1.0, "logsnr": 1.0, "discrete": 1.0}
    for name, number in numbers.items():
        changed = config.model_copy(update={"schedule": name})
        assert starts(changed, "flow")[0].number == number, name


def test_a_schedule_that_the_model_cannot_have_is_refused() -> None:
    ends = Ends("ve", 0.02, 20.0, owner="toy")
    for name, message in {
        "flow": "needs a flow path, toy is ve: use 'polynomial'",
        "discrete": "needs training timesteps, toy has none: use 'polynomial'",
        "wavy": "schedule = 'wavy' is unknown: give one of flow",
    }.items():
        with pytest.raises(ValueError, match=message):
            make_sigmas(name, 4, ends)
    with pytest.raises(ValueError, match="sigma_max = 2.0 is above 1"):
        make_sigmas("flow", 4, dataclasses.replace(ends, path="flow", sigma_max=2.0))
