"""Rewards that are others than when a run began: what they add to every picture is no gain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from helpers.toy_acceleration import brightness, trainer_of
from helpers.toy_refine import toy_refine_config, toy_table, toy_task
from torch import Tensor

from epd.rl.acceleration_state import Passing
from epd.rl.refine import refine
from epd.rl.task import Rollout, Score, Task


def scored(task: Task, change: Score) -> Task:
    """The task with all its scores in another way."""

    def other(score: Score) -> Score:
        return lambda rollout: score(rollout) + change(rollout)

    return dataclasses.replace(task, scores={name: other(score) for name, score in task.scores.items()})


def test_a_table_is_held_against_the_given_one_by_the_same_reward() -> None:
    task, config = toy_task(), toy_refine_config(steps=20, evaluate_every=10, lr=0.01, held_out=128, converged=0)
    first = next(u.state for u in refine(task, toy_table(), config) if u.iteration == 10)
    assert first.passed is not None

    def gain(now: Task) -> float:
        last = list(refine(now, toy_table(), config, first))[-1]
        assert last.evaluation is not None
        return last.evaluation.interval.mean

    same, more = gain(task), gain(scored(task, lambda rollout: torch.full((len(rollout.draws),), 6.0)))
    assert more == pytest.approx(same, rel=0.3) and more < 2


def test_what_passed_by_another_reward_has_to_pass_again() -> None:
    task, config = toy_task(), toy_refine_config(steps=20, evaluate_every=10, lr=0.01, held_out=128, converged=0)
    first = next(u.state for u in refine(task, toy_table(), config) if u.iteration == 10)

    def none(rollout: Rollout) -> Tensor:
        return torch.zeros(len(rollout.draws))

    silent = dataclasses.replace(task, scores=dict.fromkeys(task.scores, none))
    last = list(refine(silent, toy_table(), config, first))[-1].state
    assert first.passed is not None and last.passed is None and not torch.equal(last.best, first.best)


def test_a_policy_is_held_against_the_plain_solver_by_the_same_reward(caplog: pytest.LogCaptureFixture) -> None:
    def more(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 6 + brightness(images, prompts)

    first, gains = next(trainer_of(brightness).updates()).state, []
    for reward in (brightness, more):
        tested = list(trainer_of(reward).updates(first))[-1].tested
        assert tested is not None
        gains.append(tested.interval.mean)
    assert gains[1] == pytest.approx(gains[0], abs=0.2)
    assert "scores the plain solver otherwise than when this run began, by 6 on average: it is measured" in caplog.text
    passed = dataclasses.replace(first, passed=Passing(0, tested.interval, tested.policy))
    last = list(trainer_of(more).updates(passed))[-1].state.passed
    assert last is None or last.iteration > 0
