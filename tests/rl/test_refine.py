"""The trainer: what moves the policy and what does not, what is exported, and what a run leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.counting import counting
from helpers.toy_refine import toy_refine_config, toy_table, toy_task
from torch import Tensor

from epd import Table
from epd.denoisers.rows import limit_rows
from epd.rl import refine as module
from epd.rl.config import RefineConfig
from epd.rl.conservative import Verdict
from epd.rl.objective import BASELINES, leave_one_out
from epd.rl.policy_file import load_policy
from epd.rl.refine import Refiner, refine
from epd.rl.reward import RewardError
from epd.rl.run import checkpoint_of, refined, run_refine, state_of
from epd.rl.state import Update
from epd.rl.task import Draws, Task
from epd.runs.checkpoint import RunError
from epd.runs.processes import Workers


def all_of(task: Task, config: RefineConfig, base: Table | None = None) -> list[Update]:
    return list(refine(task, base or toy_table(), config))


def constant(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(images),), 0.3)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.double().mean((1, 2, 3))


@pytest.mark.parametrize("baseline", sorted(BASELINES))
def test_a_constant_reward_moves_nothing(baseline: str) -> None:
    updates = all_of(toy_task({"constant": constant}), toy_refine_config(baseline=baseline))
    assert all(torch.equal(u.state.vector, updates[0].state.best) for u in updates)
    assert updates[-1].scalars["losses/kl_to_reference"] == 0.0
    assert updates[-1].state.passed is None


def test_rewards_rise_and_the_best_table_that_passed_is_the_result() -> None:
    task, config = toy_task(), toy_refine_config(steps=30, evaluate_every=10, lr=0.01, held_out=128, converged=128)
    updates = all_of(task, config)
    tested = [u for u in updates if u.evaluation is not None]
    assert [u.iteration for u in tested] == [10, 20, 30]
    gains = [u.evaluation.interval for u in tested if u.evaluation is not None]
    assert gains[-1].low > 0.1 and gains[-1].mean > 0.5
    passed = updates[-1].state.passed
    assert passed is not None and passed.interval.low == max(i.low for i in gains)
    table = refined(task, toy_table(), config, updates[-1].state)
    assert table.provenance.parent == toy_table().digest
    assert table.provenance.metrics["gain_low"] == passed.interval.low
    # The recorded means are those of the table on the held-out samples.
    draws, (score,) = task.tested(128), task.scores.values()
    halves = [draws[:64], draws[64:]]  # end points depend a little on what they are solved with
    measured = torch.cat([score(task.roll_out(table.coefficients(), half, torch.float64)) for half in halves])
    evaluation = next(u.evaluation for u in tested if u.iteration == passed.iteration)
    assert evaluation is not None
    assert float(measured.mean()) == pytest.approx(evaluation.means["closeness"], rel=1e-9)


def test_a_sign_that_is_flipped_ships_the_given_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(module.BASELINES, "rloo", lambda rewards: -leave_one_out(rewards))
    config = toy_refine_config(steps=20, evaluate_every=5, lr=0.02)
    path = run_refine(toy_task(), toy_table(), config, tmp_path / "run")
    assert path is not None
    assert Table.load(path) == toy_table() and Table.load(path).digest == toy_table().digest
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["refined"] is False and report["passed"] is None and report["tested"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert lines[-1]["test"]["verdict"] == Verdict.REJECTED.value
    assert lines[-1]["test"]["means"]["closeness"] < lines[-1]["test"]["given"]["closeness"]


@pytest.mark.slow
def test_a_reward_whose_true_gain_is_zero_exports_a_changed_table_in_at_most_a_twentieth_of_runs() -> None:
    """200 runs of 4 tests each; pictures are ignored, so no table is better than another."""
    generator = torch.Generator().manual_seed(0)

    def luck(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (torch.rand(len(images), generator=generator) < 0.3).double()

    task, changed = toy_task({"luck": luck}), 0
    for seed in range(200):
        config = toy_refine_config(
            seed=seed, steps=4, evaluate_every=1, held_out=64, converged=0, groups=2, group_size=4, epochs=1, lr=0.05
        )
        *_, last = refine(task, toy_table(), config)
        changed += last.state.passed is not None
    assert changed <= 10


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    config = toy_refine_config(kl=0.01, kl_target=0.1, allowed=2.0, minibatches=2)
    whole, vectors = [], []
    for update in refine(toy_task(), toy_table(), config):
        whole.append(update)
        vectors.append(update.state.vector.clone())
    assert all(torch.equal(u.state.vector, v) for u, v in zip(whole, vectors, strict=True))  # later ones leave it alone
    assert whole[-1].state.steps > whole[0].state.steps > 0 and len(whole[-1].state.recent)  # it did explore
    for cut in (1, 3, 4):
        numbers = json.loads(json.dumps(checkpoint_of(whole[cut - 1].state).numbers))
        kept = replace(checkpoint_of(whole[cut - 1].state), numbers=numbers)
        rest = list(refine(toy_task(), toy_table(), config, state_of(kept, tmp_path)))
        assert [u.iteration for u in rest] == list(range(cut + 1, 7))
        last, expected = rest[-1].state, whole[-1].state
        for name in ("vector", "moments", "given", "recent", "best"):
            assert torch.equal(getattr(last, name), getattr(expected, name)), name
        assert (last.passed, last.kl, last.steps, last.looks) == (
            expected.passed, expected.kl, expected.steps, expected.looks,
        )  # fmt: skip


def test_what_a_run_leaves_and_that_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    out, config = tmp_path / "run", toy_refine_config(steps=4)
    path = run_refine(toy_task(), toy_table(), config, out)
    assert path == out / "solver.json"
    names = {"solver.json", "policy.safetensors", "report.json", "config.json", "checkpoint.safetensors"}
    assert names <= {file.name for file in out.iterdir()}
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    for name in ("losses/approx_kl", "losses/clipfrac", "losses/kl_to_reference", "rewards/closeness"):
        assert name in lines[0]
    report = json.loads((out / "report.json").read_text())
    assert report["table"] == Table.load(out / "solver.json").digest
    if report["refined"]:
        mean = load_policy(out / "policy.safetensors").mean()
        assert mean.digest == Table.load(out / "solver.json").digest
    assert path is not None
    before = path.read_bytes()
    assert run_refine(toy_task(), toy_table(), config, out, resume=True) == path and path.read_bytes() == before
    with pytest.raises(RunError, match="add --resume"):
        run_refine(toy_task(), toy_table(), config, out)
    with pytest.raises(RunError, match=r"config.lr was .*, is 0.5"):
        run_refine(toy_task(), toy_table(), toy_refine_config(steps=4, lr=0.5), out, resume=True)


def test_a_run_is_not_continued_with_other_prompts_or_rewards_in_another_order(tmp_path: Path) -> None:
    def halted(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise RuntimeError

    rewards = {"bright": brightness, "constant": constant}
    prompted = replace(toy_task(rewards), train=(0, 1), held_out=(2,), texts=lambda seeds: [f"{s}" for s in seeds])
    names = list(rewards)
    broken = {name: score for name, score in toy_task({"bright": halted, "constant": constant}).scores.items()}
    out, config = tmp_path / "run", toy_refine_config(steps=4)
    with pytest.raises(RewardError):
        run_refine(replace(prompted, scores=broken), toy_table(), config, out)
    swapped = replace(prompted, scores={name: prompted.scores[name] for name in reversed(names)})
    with pytest.raises(RunError, match="rewards was .*bright.*constant.*, is .*constant.*bright"):
        run_refine(swapped, toy_table(), config, out, resume=True)
    with pytest.raises(RunError, match="texts was 3 .*, is 3 "):
        other = replace(prompted, texts=lambda seeds: [f"{s}" if s < 2 else "another" for s in seeds])
        run_refine(other, toy_table(), config, out, resume=True)
    assert run_refine(prompted, toy_table(), config, out, resume=True) is not None


def test_scores_that_changed_since_a_run_began_are_told(caplog: pytest.LogCaptureFixture) -> None:
    config = toy_refine_config(steps=2, converged=0)
    first = next(iter(refine(toy_task({"bright": brightness}), toy_table(), config))).state
    for reward, told in ((brightness, False), (lambda i, p: 1.1 * brightness(i, p), True)):
        caplog.clear()
        assert len(list(refine(toy_task({"bright": reward}), toy_table(), config, first))) == 1
        assert ("bright scores the given table otherwise" in caplog.text) == told


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda i, p: 1 / 0, "fragile failed .*division by zero"),
        (lambda i, p: torch.full((len(i),), float("nan")), "fragile gave .*nan.* not finite"),
        (lambda i, p: torch.zeros(len(i) + 1), r"fragile returned shape \(\d+,\)"),
    ],
    ids=["raises", "NaN", "count"],
)
def test_a_reward_that_fails_in_the_middle_stops_a_run_that_goes_on_to_the_same_table(
    tmp_path: Path, fault: object, message: str
) -> None:
    config, calls = toy_refine_config(), 0

    def fragile(images: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        return fault(images, prompts) if calls == 5 else brightness(images, prompts)  # type: ignore[operator]

    with pytest.raises(RewardError, match=message):
        run_refine(toy_task({"fragile": fragile}), toy_table(), config, tmp_path / "run")
    done = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])["iteration"]
    assert 0 < done < config.steps
    path = run_refine(toy_task({"fragile": brightness}), toy_table(), config, tmp_path / "run", resume=True)
    whole = run_refine(toy_task({"fragile": brightness}), toy_table(), config, tmp_path / "whole")
    assert path is not None and whole is not None
    assert path.read_bytes() == whole.read_bytes()


def test_all_tables_of_an_update_advance_in_the_calls_of_one() -> None:
    model = counting()
    task = Task(limit_rows(model), {"bright": lambda rollout: rollout.images.double().mean((1, 2, 3))})
    config = toy_refine_config(groups=3, group_size=8)
    refiner = Refiner(task, toy_table(), config, Workers())
    generator = torch.Generator().manual_seed(0)
    samples = refiner.policy.sample(24, generator)
    draws = task.draw(3, 8, True, generator)
    model.calls.clear()
    together = refiner._measured(samples, draws)["bright"]
    assert model.calls == [24] * toy_table().depth
    for i in (0, 7, 23):
        own = task.roll_out(samples.table(i).coefficients(), draws[i : i + 1], torch.float64)
        assert float(own.images.double().mean()) == pytest.approx(float(together[i]), abs=1e-6)


def test_samples_are_grouped_by_condition_and_share_noise_where_asked() -> None:
    task = replace(toy_task(), train=(4, 7), held_out=(9, 11, 13))
    shared, own = (task.draw(5, 3, share, torch.Generator().manual_seed(1)) for share in (True, False))
    for draws, distinct in ((shared, 1), (own, 3)):
        for g in range(5):
            rows = slice(3 * g, 3 * g + 3)
            assert len(set(draws.conditions[rows])) == 1 and draws.conditions[3 * g] in (4, 7)
            assert len(set(draws.noises[rows])) == distinct
    tested = task.tested(5)
    assert tested.conditions == (9, 11, 13, 9, 11) and len(set(tested.noises)) == 5
    assert isinstance(tested[1:3], Draws) and not set(tested.noises) & set(own.noises)


def test_tables_that_are_far_worse_are_kept_from_most_prompts() -> None:
    """What is given is the best there is, and what is sampled around it is far away."""

    def near_the_given(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -(images.double() - 0.5).abs().mean((1, 2, 3)).clamp(max=1.0)

    config = toy_refine_config(allowed=0.5, std=1.5, steps=4, held_out=256, converged=0)
    updates = all_of(toy_task({"near": near_the_given}), config)
    free = all_of(toy_task({"near": near_the_given}), toy_refine_config(std=1.5, steps=4, held_out=256, converged=0))
    assert all(u.scalars["charts/exploring"] < 1.0 for u in updates)
    assert all(u.scalars["charts/exploring"] == 1.0 for u in free)
    mean = [sum(u.scalars["charts/reward_mean"] for u in run) / 4 for run in (updates, free)]
    assert mean[0] > mean[1]


def test_a_floor_that_leaves_no_room_is_told(caplog: pytest.LogCaptureFixture) -> None:
    updates = all_of(toy_task({"bright": brightness}), toy_refine_config(allowed=0.0, steps=2, converged=0))
    assert caplog.text.count("allowed = 0 leaves no room for exploring") == 1
    assert all(u.scalars["charts/exploring"] == 0.0 for u in updates)
    assert torch.equal(updates[-1].state.vector, updates[-1].state.best)


def test_minutes_decide_how_many_updates_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0  # every look costs a second
        return now[0]

    monkeypatch.setattr(module.time, "perf_counter", clock)
    config = toy_refine_config(steps=1000, minutes=0.5, converged=0)
    updates = all_of(toy_task({"constant": constant}), config)
    assert 2 <= len(updates) <= 30 and updates[-1].iteration == updates[-1].total == len(updates)
    monkeypatch.undo()
    state = updates[0].state
    rest = list(refine(toy_task({"constant": constant}), toy_table(), config, state))
    assert len(rest) == len(updates) - 1  # what was decided holds after a resume


def test_configs_that_contradict_themselves_are_refused() -> None:
    for changes, message in (
        ({"antithetic": True, "group_size": 3}, "group_size = 3 must be even"),
        ({"groups": 4, "accumulate": 3}, "accumulate = 3 must divide groups = 4"),
        ({"minibatches": 5}, "minibatches = 5 must divide"),
        ({"kl_target": 0.1}, "kl_target = 0.1 needs"),
    ):
        with pytest.raises(ValueError, match=message):
            toy_refine_config(**changes)
    with pytest.raises(ValueError, match="no reward"):
        replace(toy_task(), scores={})
    with pytest.raises(ValueError, match="'other' is weighed"):
        replace(toy_task(), weights={"other": 1.0})
    with pytest.raises(ValueError, match="'closeness' is learned from and watched"):
        replace(toy_task(), watched=toy_task().scores)
