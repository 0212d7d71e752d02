"""Our rules, tables and schedules against the published method in numbers (tests/golden), float64, to 1e-8."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from helpers import golden
from torch import Tensor

import epd

TOLERANCE = 1e-8
OURS = [case for case in golden.cases() if case.solver != "unipc"]  # UniPC comes through the diffusers adapter
GUIDANCE = {"sd15_cfg7.5": 7.5, "sd3_cfg4.5": 4.5, "sd3_nocfg": 1.0, "flux": 1.0}


@dataclass
class Counting:
    """A denoiser that records every call: the sigma that each of its rows is told."""

    denoiser: epd.Denoiser
    calls: list[list[float]] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append(sigma.expand(len(x)).tolist())
        return self.denoiser(x, sigma)


def denoiser_of(case: golden.Case) -> epd.Denoiser:
    """The exact denoiser that a case was recorded on, bound to the condition of its row."""
    parts = {k: torch.tensor(v) for k, v in golden.mixture().items()}
    mixture = parts["mu"], parts["s"], parts["w"]
    if case.net == "edm_class":
        return epd.GaussianMixture(*mixture, labels=torch.arange(10) // 2).bind([case.row % 5])
    if case.net in GUIDANCE:
        inside = torch.zeros(10, dtype=torch.long)
        inside[parts["cond_components"]] = 1
        path = "ve" if case.net.startswith("sd15") else "flow"
        return epd.GaussianMixture(*mixture, path=path, labels=inside).bind([1], GUIDANCE[case.net])
    return epd.GaussianMixture(*mixture)


def table_of(case: golden.Case) -> epd.Table:
    """The published or synthetic table of a case, from its effective values."""
    assert case.table is not None
    record = golden.tables()[case.table]
    values, order = record["effective"], record["metadata"]["max_order"]
    order = order if record["metadata"]["sampler_stu"] == "ipndm" else 1
    nodes, weights, slopes, sigmas = (values[k] for k in ("r", "weight", "scale_dir", "scale_time"))
    return epd.Table(case.sigmas, nodes, weights, slopes, sigmas, order=order, afs=case.afs)


def rule_of(case: golden.Case) -> epd.Rule:
    """Our rule for a case."""
    if case.table:
        return table_of(case).rule()
    if case.solver == "dpm_pp":
        assert case.order is not None and not case.afs
        steps = len(case.sigmas) - 1 if case.options.get("lower_order_final", True) else None
        return epd.rules.dpmpp(case.order, case.options["predict_x0"], num_steps=steps)
    if case.solver == "ipndm":
        assert case.order is not None
        return epd.rules.ipndm(case.order, afs=case.afs)
    return {"ddim": epd.rules.euler, "heun": epd.rules.heun, "dpm2": epd.rules.dpm2}[case.solver](afs=case.afs)


def expected_calls(case: golden.Case) -> list[list[float]]:
    """The sequential calls of one sample, each the sigmas that its rows are told, from the published formulas."""
    calls: list[list[float]] = []
    values = golden.tables()[case.table]["effective"] if case.table else {}
    for n, (here, there) in enumerate(zip(case.sigmas.tolist(), case.sigmas.tolist()[1:], strict=False)):
        if not (case.afs and n == 0):
            calls.append([here])
        if case.table:
            r, told = np.array(values["r"][n]), np.array(values["scale_time"][n])
            calls.append((told * there**r * here ** (1 - r)).tolist())
        elif case.solver in ("heun", "dpm2"):
            calls.append([there if case.solver == "heun" else (here * there) ** 0.5])
    return calls + [[float(case.sigmas[-1])]] * case.options["denoise_to_zero"]


def test_all_golden_cases_that_our_rules_cover_are_here() -> None:
    assert len(golden.cases()) == 303
    assert len(OURS) == 243


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.id)
def test_states_and_calls(case: golden.Case) -> None:
    denoiser = Counting(denoiser_of(case))
    states = list(epd.trajectory(rule_of(case), denoiser, torch.tensor(case.noise), case.sigmas.tolist()))
    if case.options["denoise_to_zero"]:  # not a step of a rule: one more evaluation, its answer is the sample
        states.append(denoiser(states[-1], torch.tensor(case.sigmas[-1])))
    ours = torch.cat(states).numpy()
    assert ours.shape == case.states.shape
    assert np.abs(ours - case.states).max() < TOLERANCE
    expected = expected_calls(case)
    assert [len(call) for call in denoiser.calls] == [len(call) for call in expected]
    np.testing.assert_allclose(np.concatenate(denoiser.calls), np.concatenate(expected), rtol=1e-13)
    # The published plugin evaluates its K points one by one: equal evaluations, but more sequential calls than ours.
    assert sum(map(len, denoiser.calls)) == case.sequential_calls_seen


@pytest.mark.parametrize("case", [c for c in OURS if c.table], ids=lambda case: case.id)
def test_a_table_knows_its_calls(case: golden.Case) -> None:
    table, extra = table_of(case), case.options["denoise_to_zero"]
    assert table.depth == 2 * table.num_steps - case.afs == len(expected_calls(case)) - extra
    assert table.nfe == case.sequential_calls_seen - extra
    assert table.num_parallel == table.num_nodes == len(golden.tables()[str(case.table)]["effective"]["r"][0])


def schedule_of(case: golden.Case) -> Tensor:
    """Our schedule for a case, from its name and range."""
    n, ends = case.num_points_in_time - 1, (case.sigma_min, case.sigma_max)
    if case.schedule == "discrete":
        knots = golden.mixture()["acp_sd15" if case.net.startswith("sd15") else "acp_lsun"]
        return epd.schedules.discrete(n, knots.tolist(), *ends, rho=case.rho)
    if case.schedule == "flowmatch":
        # SD3's scheduler starts its ramp from the last *shifted* training sigma and shifts that again.
        low = 3 * 0.001 / (1 + 2 * 0.001)
        sd3 = case.net != "flux"
        return epd.schedules.flow_shift(n, 3.0, sigma_min=low) if sd3 else epd.schedules.flow_shift(n, mu=1.15)
    if case.schedule == "logsnr":
        return epd.schedules.logsnr(n, *ends)
    ramp = {"polynomial": epd.schedules.polynomial, "time_uniform": epd.schedules.time_uniform}[case.schedule]
    return ramp(n, *ends, rho=case.rho)


# flowmatch was float32 at its origin; time_uniform's root of a small difference costs six digits at the low end.
SCHEDULE_TOLERANCE = {"flowmatch": 1e-7, "time_uniform": 1e-10}


def test_schedules() -> None:
    seen = set()
    for case in golden.cases():
        expected, ours = case.sigmas, schedule_of(case).numpy()
        np.testing.assert_allclose(ours, expected, rtol=SCHEDULE_TOLERANCE.get(case.schedule, 1e-14), err_msg=case.id)
        seen.add(case.schedule)
    assert seen == {"polynomial", "logsnr", "time_uniform", "discrete", "flowmatch"}


def test_schedules_end_where_they_are_told() -> None:
    # In float32 time_uniform ends on sqrt(34 ulp) = 0.0020132 (published do): exp(...) - 1 cancels. Ours must not.
    for schedule in (epd.schedules.polynomial, epd.schedules.logsnr, epd.schedules.time_uniform):
        assert schedule(7, 0.002, 80.0)[[0, -1]].tolist() == [80.0, 0.002]
