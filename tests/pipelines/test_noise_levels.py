"""`add_noise` puts in the noise of the state that a pipeline has at a timestep, whatever its network is told there."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch
from helpers.pipeline_tables import DIFFUSION_SIGMAS, TABLES, table_for
from helpers.recording import normal
from helpers.schedulers import BETAS, FLOW
from helpers.tables import told_table
from torch import Tensor

import epd
from epd.pipelines.layout import Placement
from epd.pipelines.scheduler import EPDScheduler

pytestmark = pytest.mark.filterwarnings("ignore:the table's first slope is analytic")
CLEAN, NOISE = torch.full((2, 3), 0.7, dtype=torch.float64), normal(2, 3)


def begun(table: epd.Table, path: str, placement: Any = "batched", index: int | None = None) -> EPDScheduler:  # noqa: ANN401
    scheduler = EPDScheduler.from_table(table, FLOW if path == "flow" else BETAS)
    scheduler.placement = placement
    scheduler.set_timesteps(8)
    if index is not None:
        scheduler.set_begin_index(index)
    return scheduler


def noised(scheduler: EPDScheduler, timestep: Tensor) -> Tensor:
    """In the solver's frame."""
    return scheduler._state(scheduler.add_noise(CLEAN, NOISE, timestep))


def state(path: str, sigma: float) -> Tensor:
    return (1 - sigma * (path == "flow")) * CLEAN + sigma * NOISE


@pytest.mark.filterwarnings("ignore:num_inference_steps = 8")
@pytest.mark.parametrize("placement", get_args(Placement))
@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("kind", TABLES)
def test_at_every_call_it_is_that_of_the_state(kind: str, path: str, placement: str) -> None:
    table = table_for("sd3" if path == "flow" else "sd", kind)
    calls = begun(table, path, placement).calls
    for index, call in enumerate(calls):
        scheduler = begun(table, path, placement, index)
        sigma = call.sigma[0] if index else float(table.sigmas[0])  # the first call's run begins before it, perhaps
        x = noised(scheduler, scheduler.timesteps[index : index + 1])
        # Levels that nobody scales are those of float32 timesteps; a step of the told ones is 1 % and more.
        torch.testing.assert_close(x, state(path, sigma), rtol=0, atol=1e-6 * sigma)


@pytest.mark.filterwarnings("ignore:num_inference_steps = 8")
def test_of_two_calls_at_one_timestep_the_next_is_meant() -> None:
    table = dataclasses.replace(told_table(), sigmas=DIFFUSION_SIGMAS, anchor_scale=[1.0, 1.0, 0.75, 2.5])
    for index, sigma in ((1, 2.0), (2, 0.6)):
        scheduler = begun(table, "ve", index=index)
        times = scheduler.timesteps
        assert times[1] == times[2]
        torch.testing.assert_close(noised(scheduler, times[1:2]), state("ve", sigma), rtol=0, atol=1e-6)
    running = begun(table, "ve")
    x = running.init_noise_sigma * NOISE
    for index, sigma in ((1, 2.0), (2, 0.6)):
        x = running.step(torch.zeros(4, 3), times[index - 1], x, return_dict=False)[0]
        scale = running.calls[index].c_in[0]
        latents = running.add_noise(CLEAN, NOISE, times[index : index + 1])
        torch.testing.assert_close(latents / scale, state("ve", sigma), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:num_inference_steps = 8")
def test_a_run_that_does_not_say_where_it_begins_is_known_by_its_entry() -> None:
    """Two calls are told one level: the entry's place tells them apart, a copy of it cannot."""
    table = dataclasses.replace(told_table(), sigmas=DIFFUSION_SIGMAS, anchor_scale=[1.0, 1.0, 0.75, 2.5])
    for index, entry in ((1, 1), (2, 2), (1, 2)):
        scheduler = begun(table, "ve")
        times = scheduler.timesteps
        assert times[1] == times[2]
        given = times[entry] if index == entry else times[entry].clone()
        scheduler._started(given)
        assert scheduler.begin_index == index


@pytest.mark.filterwarnings("ignore:num_inference_steps = 8")
def test_a_start_beyond_the_trained_range_is_where_the_run_starts() -> None:
    scheduler = begun(TABLES["epd"][0], "ve", index=0)
    assert scheduler.frame.sigma_max < 15
    torch.testing.assert_close(noised(scheduler, scheduler.timesteps[:1]), state("ve", 40.0), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:num_inference_steps = 8")
def test_other_timesteps_and_several_at_once() -> None:
    table = table_for("sd", "dense")
    scheduler = begun(table, "ve")
    times = torch.tensor([500.0, float(scheduler.timesteps[2])])
    latents = scheduler.add_noise(CLEAN, NOISE, times)
    free = EPDScheduler(rule="euler", **BETAS).add_noise(CLEAN, NOISE, times)
    torch.testing.assert_close(latents[:1], free[:1], rtol=0, atol=0)
    scale = scheduler.calls[2].c_in[0]
    torch.testing.assert_close(latents[1] / scale, state("ve", table.sigmas[3])[1], rtol=0, atol=1e-6)
