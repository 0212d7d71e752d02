"""Refinements that are killed, and those of several processes: the table is the same."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.forked import assert_lost, in_processes, kill_at
from helpers.toy_refine import toy_refine_config, toy_table, toy_task
from torch import Tensor

from epd.rl.policy_file import load_policy
from epd.rl.run import run_refine
from epd.runs import follow
from epd.runs.checkpoint import load_checkpoint
from epd.runs.processes import Workers

CHANGES: dict[str, object] = {"steps": 8, "accumulate": 2, "kl": 0.01, "kl_target": 0.05, "allowed": 2.0}


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.double().mean((1, 2, 3))


def assert_equal_results(first: Path, second: Path) -> None:
    """Bit for bit, of a run whose policy has moved; the entries of a safetensors header have no order."""
    for name in ("solver.json", "report.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    states = [load_checkpoint(folder / "checkpoint.safetensors")[0] for folder in (first, second)]
    assert states[0].numbers == states[1].numbers and states[0].numbers["state"]["steps"] > 0
    for name, tensor in states[0].tensors.items():
        assert torch.equal(tensor, states[1].tensors[name]), name
    policies = [load_policy(folder / "policy.safetensors").state_dict() for folder in (first, second)]
    assert all(torch.equal(value, policies[1][key]) for key, value in policies[0].items())


def child(out: Path) -> int:
    """The run in a forked process of this one, so that twenty of them take seconds."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            config = toy_refine_config(**CHANGES, converged=0)
            resume = (out / "checkpoint.safetensors").exists()
            run_refine(toy_task({"bright": brightness}), toy_table(), config, out, resume=resume)
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_resumed_the_table_is_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "CHECKPOINT_SECONDS", 0.0)
    assert os.waitpid(child(tmp_path / "whole"), 0)[1] == 0
    began = time.monotonic()
    assert os.waitpid(child(tmp_path / "timed"), 0)[1] == 0
    duration = time.monotonic() - began
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    out.mkdir()
    while kills < 20:
        pid = child(out)
        time.sleep(rng.uniform(0.05, 0.6) * duration)
        os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1] == 0:  # it was faster
            for name in ("solver.json", "checkpoint.safetensors", "report.json", "policy.safetensors"):
                (out / name).unlink()
        else:
            kills += 1
    assert os.waitpid(child(out), 0)[1] == 0
    assert_equal_results(out, tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_refine_to_the_table_of_one(tmp_path: Path) -> None:
    """Two gloo processes on the CPU, as torchrun starts them; each solves its own prompts."""

    def work(out: Path) -> object:
        run_refine(toy_task(), toy_table(), toy_refine_config(**CHANGES), out)
        workers = Workers.of_accelerate()
        workers.end()
        return f"{workers.rank}/{workers.count}"

    assert in_processes(lambda: work(tmp_path / "one"), 1) == ["0/1"]
    assert in_processes(lambda: work(tmp_path / "two"), 2) == ["0/2", "1/2"]
    assert_equal_results(tmp_path / "one", tmp_path / "two")


def test_one_of_two_processes_is_killed_and_both_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "CHECKPOINT_SECONDS", 0.0)
    config = toy_refine_config(**{**CHANGES, "steps": 3}, converged=0, held_out=128)

    def work(name: str) -> object:
        task = toy_task({"bright": brightness})
        run_refine(task, toy_table(), config, tmp_path / name, resume=name == "two")
        Workers.of_accelerate().end()
        return "done"

    assert in_processes(lambda: work("one"), 1) == ["done"]
    with monkeypatch.context() as deadly:
        kill_at(deadly, Workers, "mean", 7)
        assert_lost(in_processes(lambda: work("two"), patience=60))
    assert (tmp_path / "two" / "checkpoint.safetensors").exists()
    assert in_processes(lambda: work("two")) == ["done", "done"]
    assert_equal_results(tmp_path / "one", tmp_path / "two")


def test_a_reward_that_fails_in_one_process_stops_all(tmp_path: Path) -> None:
    def fragile(images: Tensor, prompts: Sequence[str]) -> Tensor:
        if os.environ["RANK"] == "1":
            raise OSError(28, "No space left on device")
        return torch.zeros(len(images))

    config = toy_refine_config(accumulate=2, converged=0, held_out=128)
    answers = in_processes(lambda: str(run_refine(toy_task({"fragile": fragile}), toy_table(), config, tmp_path / "r")))
    assert [answer[0] for answer in answers] == ["ProcessError", "RewardError"]  # type: ignore[index]
    assert "process 1 of 2 failed: RewardError: the reward fragile failed" in answers[0][1]  # type: ignore[index]
