"""Policies whose tables depend on a context: what is sampled, tested and exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.policies import moved
from helpers.toy_refine import toy_refine_config, toy_table, toy_task
from torch import Tensor

from epd import Table
from epd.rl.policy_file import load_policy
from epd.rl.refine import Refiner, refine
from epd.rl.run import checkpoint_of, run_refine, state_of
from epd.rl.task import Rollout, Score, Task
from epd.runs.processes import Workers


def agreed(rollout: Rollout) -> Tensor:
    """Large states are good."""
    return rollout.states.flatten(1).square().mean(1).sqrt()


def opposed(rollout: Rollout) -> Tensor:
    """Large states are good under one prompt and bad under the other."""
    signs = torch.tensor([1.0 if prompt == "0" else -1.0 for prompt in rollout.prompts], dtype=torch.float64)
    return signs * agreed(rollout)


def task_of(score: Score) -> Task:
    """Two conditions, each with a coordinate of its own."""
    return replace(
        toy_task(),
        scores={"size": score},
        train=(0, 1),
        held_out=(0, 1),
        texts=lambda seeds: [str(seed) for seed in seeds],
        context=lambda seeds: torch.nn.functional.one_hot(torch.tensor(seeds), 2).float(),
    )


CONFIG = {"steps": 30, "evaluate_every": 15, "lr": 0.02, "converged": 0, "held_out": 128}


def test_each_sample_is_tested_by_the_table_of_its_context() -> None:
    task, config = task_of(opposed), toy_refine_config()
    refiner = Refiner(task, toy_table(), config, Workers())
    policy, (score,) = moved(refiner.policy), task.scores.values()
    state = refiner._first()
    _, evaluation = refiner.tester.test(state, policy)
    draws, (contexts,) = task.tested(64), (torch.eye(2, dtype=torch.float64),)
    tables = [policy.mean(contexts[i : i + 1]) for i in (0, 1)]
    assert tables[0] != tables[1]
    alone = [
        float(score(task.roll_out(tables[draws.conditions[i]].coefficients(), draws[i : i + 1], torch.float64)))
        for i in range(64)
    ]
    assert evaluation.means["size"] == pytest.approx(sum(alone) / 64, rel=1e-6)


def test_a_policy_that_no_one_table_stands_for_leaves_the_given_table(tmp_path: Path) -> None:
    """Each prompt's tables are better, their mean is not: it was tested, too."""
    task, config, out = task_of(opposed), toy_refine_config(**CONFIG), tmp_path / "run"
    path = run_refine(task, toy_table(), config, out)
    report = json.loads((out / "report.json").read_text())
    assert report["passed"]["interval"]["low"] > 0 and report["passed"]["table"] is None
    assert path is not None and Table.load(path) == toy_table() and report["refined"] is False
    policy = load_policy(out / "policy.safetensors")
    rows = torch.eye(2, dtype=torch.float64)
    assert policy.context_size == 2 and policy.mean(rows[:1]) != policy.mean(rows[1:])


def test_a_table_that_stands_for_all_contexts_is_exported_and_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    task, config = task_of(agreed), toy_refine_config(**CONFIG, minibatches=2, kl=0.01)
    *_, middle, _, _, last = list(refine(task, toy_table(), config))
    passed = last.state.passed
    assert passed is not None and passed.table is not None and passed.table.low > 0
    resumed = state_of(checkpoint_of(middle.state), tmp_path)
    *_, again = refine(task, toy_table(), config, resumed)
    assert torch.equal(again.state.vector, last.state.vector) and again.state.passed == passed


@pytest.mark.parametrize(
    "context",
    [lambda s: torch.zeros(len(s)), lambda s: torch.zeros(1, 2), lambda s: torch.full((len(s), 2), torch.nan)],
)
def test_a_context_of_another_shape_is_refused(context: object) -> None:
    task = replace(task_of(agreed), context=context)
    with pytest.raises(ValueError, match=r"context of \d+ seeds has shape .*return \(\d+, C\)"):
        list(refine(task, toy_table(), toy_refine_config()))
