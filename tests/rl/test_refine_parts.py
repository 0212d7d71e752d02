"""What an update of many or large samples is made in, and what it remembers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.counting import counting
from helpers.toy_refine import toy_refine_config, toy_table, toy_task
from torch import Tensor

from epd.denoisers.rows import limit_rows
from epd.rl import refine as trainer
from epd.rl import testing
from epd.rl.objective import BASELINES
from epd.rl.refine import Refiner, refine
from epd.rl.task import Draws, Rollout, Task
from epd.runs.processes import Workers
from epd.solvers.parallel import Coefficients


def bright(rollout: Rollout) -> Tensor:
    return rollout.images.double().mean((1, 2, 3))


def test_large_samples_are_solved_and_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = counting(), toy_refine_config(groups=3, group_size=8, held_out=100, converged=0)
    refiner = Refiner(Task(limit_rows(model), {"bright": bright}), toy_table(), config, Workers())
    samples = refiner.policy.sample(24, torch.Generator().manual_seed(0))
    draws = refiner.task.draw(3, 8, True, torch.Generator().manual_seed(0))
    whole, given = refiner._measured(samples, draws)["bright"], refiner.tester.given()
    for module in (trainer, testing):
        monkeypatch.setattr(module, "samples_together", lambda shape, most: 7)
    few = Refiner(refiner.task, toy_table(), config, Workers())
    model.calls.clear()
    assert torch.allclose(few._measured(samples, draws)["bright"], whole, atol=1e-12)
    assert model.calls == [size for size in (7, 7, 7, 3) for _ in range(toy_table().depth)]
    assert few.tester.block == 4 and torch.allclose(few.tester.given(), given, atol=1e-12)


def test_pictures_are_decoded_for_rewards_or_to_be_shown_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, decoded = counting(), list[int]()
    monkeypatch.setattr(model, "decode", lambda x: (decoded.append(len(x)), torch.zeros(len(x), 1, 2, 2))[1])

    def size(rollout: Rollout) -> Tensor:
        return rollout.states.flatten(1).mean(1)

    for score, expected in ((size, [testing.SHOWN]), (bright, [64, 36])):
        decoded.clear()
        task = Task(limit_rows(model), {"score": score})
        refiner = Refiner(task, toy_table(), toy_refine_config(held_out=100, converged=10), Workers())
        refiner.tester.given()
        assert decoded == expected
        assert refiner.tester.pictures is not None and len(refiner.tester.pictures) == testing.SHOWN


def test_safe_exploration_counts_prompts_and_not_their_tables() -> None:
    """The tables of a prompt share it, and here its noise: sixteen of them are not sixteen independent numbers."""
    config = toy_refine_config(groups=4, group_size=8, steps=3)
    sizes = [len(update.state.recent) for update in refine(toy_task(), toy_table(), config)]
    assert sizes == [4, 8, 12]


def test_a_table_that_overflows_is_as_bad_as_the_worst_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    honest, grouped = Task.roll_out, BASELINES["rloo"]

    def overflowing(task: Task, c: Coefficients, draws: Draws, dtype: torch.dtype, check: bool = True) -> Rollout:
        rollout = honest(task, c, draws, dtype, check)
        return rollout if check else replace(rollout, states=rollout.states.index_fill(0, lost, torch.inf))

    def watching(rewards: Tensor) -> Tensor:
        seen.append(rewards)
        return grouped(rewards)

    monkeypatch.setattr(Task, "roll_out", overflowing)
    monkeypatch.setitem(BASELINES, "rloo", watching)
    lost, task, config = torch.tensor([], dtype=torch.long), toy_task(), toy_refine_config(steps=1)
    list(refine(task, toy_table(), config))
    lost = torch.tensor([3, 12])
    assert all(torch.isfinite(u.state.vector).all() for u in list(refine(task, toy_table(), config)))
    without, with_lost = (rewards.flatten() for rewards in seen)
    others = torch.ones(32, dtype=torch.bool).index_fill(0, lost, False)
    assert torch.equal(with_lost[others], without[others])
    assert torch.equal(with_lost[lost], without[others].min().expand(2))
    lost = torch.arange(32)
    with pytest.raises(FloatingPointError, match="all 32 sampled tables lead out of the finite numbers.*smaller std"):
        list(refine(task, toy_table(), config))
