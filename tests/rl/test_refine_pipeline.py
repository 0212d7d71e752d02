"""Tables of a policy, all different, through a stock pipeline: the calls of one, the samples of each alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.policies import generator, moved
from helpers.tables import FAMILIES
from helpers.tiny_pipelines import PROMPTS, build, network

from epd import Table
from epd.denoisers.rows import limit_rows
from epd.pipelines.denoiser import PipelineModel, from_pipeline
from epd.rl.policy import Policy
from epd.rl.task import Task

CASES = [("anchor and memory", "ours"), ("one call, no fan", "ours"), ("epd", "published"), ("plugin", "published")]
COUNT = 6


@pytest.fixture(scope="module")
def model() -> PipelineModel:
    return from_pipeline(
        build("sd3"), PROMPTS, guidance=2.0, height=64, width=64, options={"max_sequence_length": 16}, name="tiny"
    )


def on_flow(name: str) -> Table:
    return dataclasses.replace(FAMILIES[name], sigmas=[1.0, 0.85, 0.6, 0.3, 0.05])


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_rollout_of_different_tables_makes_the_calls_of_one_and_equals_separate_solves(
    name: str, kind: str, model: PipelineModel
) -> None:
    table, seen = on_flow(name), list[int]()
    bright = {"bright": lambda rollout: rollout.images.mean((1, 2, 3))}
    task = Task(limit_rows(model, 64), bright, texts=model.prompts_of)
    samples = moved(Policy(table, kind)).sample(COUNT, generator())
    draws = task.draw(COUNT // 2, 2, False, generator(1))

    def count(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
        seen.append(len(kwargs["hidden_states"]))

    hook = network(model.pipe).register_forward_pre_hook(count, with_kwargs=True)
    try:
        together = task.roll_out(samples.coefficients(), draws, torch.float64)
        many = seen.copy()
        seen.clear()
        one = task.roll_out(table.coefficients(), draws, torch.float64)
    finally:
        hook.remove()
    assert many == seen and len(seen) == table.depth
    assert max(seen) == 2 * COUNT * max(1, table.num_parallel)  # guidance doubles the rows
    assert together.prompts == [PROMPTS[seed % len(PROMPTS)] for seed in draws.conditions]
    states = [
        task.roll_out(samples.table(i).coefficients(), draws[i : i + 1], torch.float64).states for i in range(COUNT)
    ]
    assert float((together.states - torch.cat(states)).abs().max()) < 1e-5
    assert float((together.states - one.states).abs().max()) > 1e-3  # the tables do differ
    assert together.images.shape == (COUNT, 3, 64, 64)
