"""Learning which calls to leave out: towards what is known to be best, with gradients of what was decided alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy_acceleration import assert_same, brightness, constant, toy_acceleration_config, trainer_of
from helpers.toy_refine import toy_table, toy_task
from torch import Tensor

import epd
from epd.accelerators.heads_file import load_heads
from epd.denoisers.digits import digits
from epd.denoisers.rows import limit_rows
from epd.experiments.two_kinds import two_kinds
from epd.rl import acceleration as module
from epd.rl.acceleration import AccelerationTrainer, grid_table
from epd.rl.acceleration_run import run_acceleration
from epd.rl.closeness import Closeness
from epd.rl.conservative import Verdict
from epd.rl.rewards import FunctionReward
from epd.rl.step_reward import discount
from epd.rl.task import Task, score_of
from epd.runs.checkpoint import RunError


def test_where_only_calls_count_it_learns_to_make_few() -> None:
    """Every picture earns the same: what is left is f(K), largest for one call."""
    trainer = trainer_of(constant, steps=12, groups=8, group_size=8, lr=0.03, reward_shift=1.0, evaluate_every=12)
    *_, last = trainer.updates()
    tested = last.tested
    assert tested is not None and tested.verdict is Verdict.PASSED
    assert tested.policy.calls < 2.5 and tested.plain.calls == 6
    expected = discount(torch.tensor([6.0]), 0.8)
    assert tested.plain.earned == pytest.approx(float(expected)) and tested.policy.earned > 0.7


def test_where_calls_cost_nothing_it_learns_to_make_them() -> None:
    """Closeness to the converged end at decay 1: what was sampled left calls out, and is found to be worse."""
    config = toy_acceleration_config(steps=12, groups=8, group_size=8, lr=0.03, decay=1.0, evaluate_every=12)
    seen = [u.scalars["charts/calls"] for u in AccelerationTrainer(toy_task(), None, config).updates()]
    assert sum(seen[-3:]) / 3 > seen[0] + 0.5


@pytest.mark.slow
def test_samples_that_need_few_calls_get_few() -> None:
    """A straight path is exact with one call: what it does not take is left to paths that bend, at no less closeness
    than plain steps of half as many calls more reach.
    """
    model = limit_rows(two_kinds())
    task = Task(model, {"closeness": Closeness(model, 1e-3)})
    config = toy_acceleration_config(
        steps=40, grid=12, groups=16, group_size=8, epochs=4, channels=8, lr=3e-3, decay=0.9, evaluate_every=20
    )
    trainer = AccelerationTrainer(task, None, config)
    *_, last = trainer.updates()
    assert last.state.passed is not None
    tester = trainer.tester
    scores, calls = tester.measure(trainer.finished(last.state))
    straight, bent = calls[::2], calls[1::2]  # held-out seeds take turns
    assert float(straight.mean()) < 1.5 and float(bent.mean()) > 6
    longer = tester.plain(grid_table(model, config.model_copy(update={"grid": round(1.5 * float(calls.mean()))})))
    assert float(scores.mean()) > float(longer.mean())


def test_the_ratio_is_one_at_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios: list[Tensor] = []

    def seen(new: Tensor, old: Tensor, *rest: Any) -> Tensor:  # noqa: ANN401
        ratios.append((new - old).detach().exp())
        return original(new, old, *rest)

    original = module.clipped_loss
    monkeypatch.setattr(module, "clipped_loss", seen)
    next(iter(trainer_of(epochs=3).updates()))
    assert torch.equal(ratios[0], torch.ones_like(ratios[0])) and not torch.equal(ratios[1], ratios[0])


def test_groups_that_all_earn_the_same_are_left_out() -> None:
    """At decay 1 and a constant reward nobody earns more than another: nothing moves."""
    trainer = trainer_of(constant, decay=1.0, reward_shift=1.0, steps=2)
    first = trainer.first()
    updates = list(trainer.updates(first))
    assert all(u.scalars["charts/telling"] == 0 for u in updates)
    assert torch.equal(updates[-1].state.vector, first.vector) and updates[-1].state.steps == 0


def test_a_head_that_nobody_asked_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jumps to the end leave no second decision: the cache head is never asked, and stays as it is to the last bit."""
    trainer = trainer_of(steps=1, jump=6, sharpness=1e4, entropy=0.0)
    first = trainer.first()
    with torch.no_grad():
        assert trainer._sampled(trainer.task.draw(4, 4, True, torch.Generator()), list(range(16)))[1].eq(1).all()
    monkeypatch.setattr(module, "with_spread", lambda rewards: torch.ones(len(rewards), dtype=torch.bool))
    monkeypatch.setitem(module.BASELINES, "grpo", lambda rewards: torch.randn(rewards.shape, dtype=torch.float64))
    (update,) = trainer.updates(first)
    at = 0
    for name, parameter in trainer.heads.named_parameters():
        rows = slice(at, at + parameter.numel())
        at += parameter.numel()
        moved = not torch.equal(update.state.vector[rows], first.vector[rows])
        assert not (moved and "cache" in name), name
    assert update.state.steps == 2 and not torch.equal(update.state.vector, first.vector)


def test_the_step_head_alone_with_leave_one_out_is_tpdm() -> None:
    trainer = trainer_of(heads=("step",), baseline="rloo", steps=2)
    assert list(trainer.heads.parts) == ["step"]
    updates = list(trainer.updates())
    assert not torch.equal(updates[-1].state.vector, trainer.first().vector)


def test_all_three_heads_learn_on_a_network() -> None:
    model = limit_rows(digits())
    heads = ("step", "cache", "sparse")
    config = toy_acceleration_config(steps=1, grid=3, groups=2, heads=heads, levels=(0.5,), block=4, dtype="float32")
    task = Task(model, {"bright": score_of(FunctionReward("bright", brightness))})
    trainer = AccelerationTrainer(task, None, config)
    first = trainer.first()
    (update,) = trainer.updates(first)
    assert 0.5 < trainer.layout.costs[0] < 1 and update.scalars["charts/calls"] < 3
    moved, at = set(), 0
    for name, parameter in trainer.heads.named_parameters():
        rows = slice(at, at := at + parameter.numel())
        if not torch.equal(update.state.vector[rows], first.vector[rows]):
            moved.add(name.split(".")[1])
    assert moved == set(heads)


def test_a_run_stops_anywhere_and_goes_on_to_the_same_bits() -> None:
    whole = list(trainer_of().updates())
    again = list(trainer_of().updates(whole[1].state))
    assert [u.iteration for u in again] == [3, 4]
    for one, other in zip(whole[2:], again, strict=True):
        assert torch.equal(one.state.vector, other.state.vector)
        assert torch.equal(one.state.moments, other.state.moments)
        assert one.scalars == other.scalars and one.tested == other.tested


def test_parts_are_summed_to_what_one_part_gives() -> None:
    one, parts = (list(trainer_of(accumulate=n, steps=2).updates())[-1].state for n in (1, 4))
    torch.testing.assert_close(one.vector, parts.vector, atol=1e-5, rtol=1e-4)


def test_a_limit_of_rows_is_kept_by_solving_fewer_samples_together() -> None:
    task = toy_task({"reward": brightness})
    limited = dataclasses.replace(task, model=limit_rows(task.model, 3))
    free, kept = (next(AccelerationTrainer(t, None, toy_acceleration_config()).updates()) for t in (task, limited))
    torch.testing.assert_close(kept.state.vector, free.state.vector, atol=1e-5, rtol=1e-4)
    assert kept.scalars["charts/calls"] == free.scalars["charts/calls"]


def test_a_negative_reward_as_published_pays_for_more_calls() -> None:
    def minus(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -constant(images, prompts)

    trainer = trainer_of(minus, reward_shift=None)
    given = trainer.first().given
    quality = trainer.tester.quality({"reward": given[0][:2]}, given)
    few, many = trainer.tester.earned(quality, torch.tensor([2.0, 6.0]))
    assert quality.tolist() == [-1, -1] and many > few


def test_tables_that_ask_twice_are_refused() -> None:
    table = epd.Table([20.0, 1.0, 0.02], [[0.5], [0.5]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="ask once a step"):
        AccelerationTrainer(toy_task(), table, toy_acceleration_config())
    assert AccelerationTrainer(toy_task(), toy_table(), toy_acceleration_config()).layout.steps == 3


def test_a_run_leaves_what_it_says_and_goes_on(tmp_path: Path) -> None:
    config, out = toy_acceleration_config(), tmp_path / "run"
    path = run_acceleration(toy_task({"bright": brightness}), None, config, out)
    assert path is not None and path == out / "policy.safetensors"
    heads, learned = load_heads(path)
    assert heads.layout.steps == 6 and learned.model == "toy" and len(learned.sigmas) == 7
    assert epd.Table.load(out / "solver.json").num_steps == 6
    assert len((out / "history.jsonl").read_text().splitlines()) == 4
    before = path.read_bytes()
    assert run_acceleration(toy_task({"bright": brightness}), None, config, out, resume=True) == path
    assert path.read_bytes() == before
    with pytest.raises(RunError, match="add --resume"):
        run_acceleration(toy_task({"bright": brightness}), None, config, out)
    other = config.model_copy(update={"lr": 0.5})
    with pytest.raises(RunError, match="lr was 0.01, is 0.5"):
        run_acceleration(toy_task({"bright": brightness}), None, other, out, resume=True)


def test_an_interrupted_run_is_resumed_to_the_same_files(tmp_path: Path) -> None:
    config = toy_acceleration_config(evaluate_every=4)
    run_acceleration(toy_task({"fragile": brightness}), None, config, tmp_path / "whole")
    calls = 0

    def fragile(images: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return brightness(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        run_acceleration(toy_task({"fragile": fragile}), None, config, tmp_path / "run")
    run_acceleration(toy_task({"fragile": brightness}), None, config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")
