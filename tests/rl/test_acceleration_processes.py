"""Runs that are killed, and those of several processes: the policy is the same."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.forked import in_processes
from helpers.toy_acceleration import assert_same, brightness, toy_acceleration_config
from helpers.toy_refine import toy_task

from epd.rl.acceleration_run import run_acceleration
from epd.runs import follow
from epd.runs.processes import Workers

CONFIG = toy_acceleration_config(steps=6, accumulate=2)


def child(out: Path) -> int:
    """The run in a forked process of this one."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resume = (out / "checkpoint.safetensors").exists()
            run_acceleration(toy_task({"bright": brightness}), None, CONFIG, out, resume=resume)
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed_the_policy_is_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "CHECKPOINT_SECONDS", 0.0)
    began = time.monotonic()
    assert os.waitpid(child(tmp_path / "whole"), 0)[1] == 0
    duration = time.monotonic() - began
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    out.mkdir()
    while kills < 10:
        pid = child(out)
        time.sleep(rng.uniform(0.05, 0.7) * duration)
        os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1] == 0:  # it was faster
            for name in ("solver.json", "checkpoint.safetensors", "report.json", "policy.safetensors"):
                (out / name).unlink()
        else:
            kills += 1
    assert os.waitpid(child(out), 0)[1] == 0
    assert_same(out, tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_learn_the_policy_of_one(tmp_path: Path) -> None:
    def work(out: Path) -> object:
        run_acceleration(toy_task({"bright": brightness}), None, CONFIG, out)
        workers = Workers.of_accelerate()
        workers.end()
        return f"{workers.rank}/{workers.count}"

    assert in_processes(lambda: work(tmp_path / "two")) == ["0/2", "1/2"]
    assert in_processes(lambda: work(tmp_path / "one"), count=1) == ["0/1"]
    assert_same(tmp_path / "two", tmp_path / "one")
