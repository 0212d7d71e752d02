"""The loop and what it is given when that is impossible: one clear error each, naming value and remedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.recording import Recorder, elementwise, normal
from helpers.tables import FAMILIES, SIGMAS
from torch import Tensor

import epd

rules = epd.rules
NOISE = normal(5, 2, 3)


RUNS = {"euler": rules.euler(), "heun": rules.heun(), "anchor and memory": FAMILIES["anchor and memory"].rule()}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("name", "call", "step"), [("euler", 0, 0), ("heun", 5, 2), ("anchor and memory", 7, 3)])
def test_a_network_that_is_not_finite_is_an_error_that_names_the_step(
    bad: float, name: str, call: int, step: int
) -> None:
    recorder = Recorder()

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        out = recorder(x, sigma)
        if len(recorder.calls) == call + 1:
            out[0] = bad
        return out

    where = rf"after step {step} \(sigma {SIGMAS[step]:g} -> {SIGMAS[step + 1]:g}\)"
    with pytest.raises(FloatingPointError, match=where):
        epd.solve(RUNS[name], denoiser, NOISE, SIGMAS)


@pytest.mark.parametrize("shape", [(5, 2, 6), (5, 4, 3), (1, 2, 3), (5, 2), (5, 1, 2, 3)])
def test_a_network_that_changes_the_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"returned shape .* for a state of shape \(5, 2, 3\)"):
        epd.solve(rules.euler(), lambda x, sigma: torch.zeros(shape), NOISE, SIGMAS)


def test_what_is_no_rule_answer_or_noise_is_told_with_what_to_give() -> None:
    table, sigmas = FAMILIES["anchor and memory"], [2.0, 1.0]
    with pytest.raises(TypeError, match=r"rule is of type Table: give one such as .*table.rule\(\)"):
        epd.solve(table, elementwise, NOISE, sigmas)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"answer is of type str: give one such as epd.auto\(\)"):
        epd.solve(rules.euler(), elementwise, NOISE, sigmas, answer="auto")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise of torch.int64 must be of floating point"):
        epd.solve(rules.euler(), elementwise, NOISE.long(), sigmas)


@pytest.mark.parametrize("seeds", [[], [-1], [1.9], [0, 2.0], ["1"]])
def test_seeds_are_integers_from_zero_on(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="must be (non-negative )?integers, one"):
        epd.unit_noise(seeds, (2,))
    assert torch.equal(epd.unit_noise([*np.array([3, 4])], (2,)), epd.unit_noise([3, 4], (2,)))


BAD_SIGMAS: dict[str, list[float]] = {
    r"sigmas\[1\] = 9.0, sigmas\[2\] = 10.0": [40.0, 9.0, 10.0, 1.0],
    r"sigmas\[0\] = 2.0, sigmas\[1\] = 2.0": [2.0, 2.0],
    r"sigmas\[1\] = -1.0 must be finite and positive": [2.0, -1.0],
    r"sigmas\[1\] = 0.0 must be finite and positive": [2.0, 0.0, -1.0],
    r"sigmas\[0\] = nan": [float("nan"), 1.0],
    r"sigmas\[0\] = inf": [float("inf"), 1.0],
    r"at least 2 numbers, got shape \(1,\)": [1.0],
    r"at least 2 numbers, got shape \(0,\)": [],
}


@pytest.mark.parametrize("message", BAD_SIGMAS)
def test_impossible_sigmas_are_an_error_before_any_call(message: str) -> None:
    for sigmas in (BAD_SIGMAS[message], torch.tensor(BAD_SIGMAS[message], dtype=torch.float64)):
        recorder = Recorder()
        with pytest.raises(ValueError, match=message):
            epd.solve(rules.euler(), recorder, NOISE, sigmas)
        assert not recorder.calls


@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_driven_with_more_sigmas_than_it_has_is_one_clear_error(name: str) -> None:
    with pytest.raises(ValueError, match="the table has 4 steps, step 4 is asked for: drive it with table.sigmas"):
        epd.solve(FAMILIES[name].rule(), elementwise, NOISE, [*SIGMAS, 0.05])


BAD_RULES: dict[str, Callable[[], epd.Rule]] = {
    "r = 0": lambda: rules.dpm2(0),
    "r = 1": lambda: rules.dpm2(1),
    "order = 5": lambda: rules.ipndm(5),
    "order = 0": lambda: rules.ipndm(0),
    "order = 4 must be 1, 2 or 3": lambda: rules.dpmpp(4),
}


@pytest.mark.parametrize("message", BAD_RULES)
def test_impossible_rules_are_an_error(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD_RULES[message]()


BAD_SCHEDULES: dict[str, Callable[[], Tensor]] = {
    "num_steps = 0": lambda: epd.schedules.polynomial(0),
    "sigma_min = 80.0, sigma_max = 0.002": lambda: epd.schedules.logsnr(3, 80.0, 0.002),
    "sigma_min = 0": lambda: epd.schedules.time_uniform(3, 0, 1),
    "rho = -1": lambda: epd.schedules.polynomial(3, rho=-1),
    "sigma_max = 2 is above 1": lambda: epd.schedules.flow_shift(3, sigma_max=2),
    "shift = 0": lambda: epd.schedules.flow_shift(3, shift=0),
    "rho = 0 must be positive; 1 is uniform in t": lambda: epd.schedules.time_uniform(3, rho=0),
    "rho = 0 must be positive; 1 is uniform in the timestep": lambda: epd.schedules.discrete(3, [0.9, 0.1], rho=0),
    "rho = inf must be": lambda: epd.schedules.polynomial(3, rho=float("inf")),
    r"epsilon = 2 must be inside \(0, 1\)": lambda: epd.schedules.time_uniform(3, epsilon=2),
    "shift = -3 must be positive": lambda: epd.schedules.flow_between(3, shift=-3),
    r"alphas_cumprod must be \(T,\) strictly decreasing": lambda: epd.schedules.discrete(3, [0.1, 0.9]),
}


@pytest.mark.parametrize("message", BAD_SCHEDULES)
def test_impossible_schedules_are_an_error(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD_SCHEDULES[message]()
