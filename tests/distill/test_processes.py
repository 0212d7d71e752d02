"""Runs that are killed, and runs of several processes: the table is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.forked import assert_lost, in_processes, kill_at
from helpers.toy_models import toy_config, toy_mixture

from epd import Table
from epd.distill import run as train
from epd.distill import train as training
from epd.distill.config import DistillConfig
from epd.distill.plan import make_plan
from epd.distill.teacher import POOL_SEEDS, VALIDATION_SEEDS, Teacher
from epd.distill.train import distill
from epd.runs import follow
from epd.runs.processes import Workers

HELPERS = Path(__file__).resolve().parents[1] / "helpers"


def child(config: DistillConfig, out: Path) -> int:
    """The run in a forked process of this one, so that ten of them take seconds."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train.run_distill(toy_mixture(), config, out, resume=(out / "checkpoint.safetensors").exists())
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gauss-newton", "adam", "soap"])
def test_killed_at_random_moments_and_resumed_the_table_is_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """kill -9 at ten random moments of each optimiser's run, teacher, screening and writes included."""
    monkeypatch.setattr(follow, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache-whole"))
    config = toy_config(family="epd", calls=5, optimizer=optimizer, iterations=12)
    began = time.monotonic()
    assert os.waitpid(child(config, tmp_path / "whole"), 0)[1] == 0
    duration = time.monotonic() - began
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    out.mkdir()
    for name in ("solver.json", "checkpoint.safetensors"):  # a kill while these are written is rare
        (out / f".{name}.abcdefgh").write_bytes(b"half")
    while kills < 10:
        pid = child(config, out)
        time.sleep(rng.uniform(0.05, 0.4) * duration)
        os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1] == 0:  # it was faster
            (out / "solver.json").unlink()
            (out / "checkpoint.safetensors").unlink()
        else:
            kills += 1
    assert os.waitpid(child(config, out), 0)[1] == 0
    assert (out / "solver.json").read_bytes() == (tmp_path / "whole" / "solver.json").read_bytes()
    assert not list(out.glob(".*"))  # what kills left of unfinished writes is gone


def forked(count: int, changes: dict[str, object], out: Path, cache: Path) -> list[object]:
    """Runs of the toy model in so many gloo processes: which of how many each was."""

    def work() -> object:
        os.environ["EPD_CACHE"] = str(cache)
        train.run_distill(toy_mixture(), toy_config(family="epd", calls=5, **changes), out)
        workers = Workers.of_accelerate()
        workers.end()
        return f"{workers.rank}/{workers.count}"

    return in_processes(work, count)


def torchrun(changes: dict[str, object], out: Path, cache: Path) -> list[str]:
    """The same as `forked(2, ...)`, by PyTorch's launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(HELPERS / "toy_run.py"), str(out), json.dumps(changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EPD_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return sorted(done.stdout.decode().split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 4},
        {"optimizer": "adam", "accumulate": 2, "iterations": 60},
        {"optimizer": "adam", "accumulate": 1},
    ],
    ids=["gauss-newton", "adam", "adam, one part"],
)
def test_two_processes_learn_the_table_of_one(tmp_path: Path, changes: dict[str, object]) -> None:
    """Gloo processes on the CPU; once by torchrun, whose three interpreters take ten seconds to start."""
    assert forked(1, changes, tmp_path / "one", tmp_path / "cache-one") == ["0/1"]
    arguments = changes, tmp_path / "two", tmp_path / "cache-two"
    assert (forked(2, *arguments) if "optimizer" in changes else torchrun(*arguments)) == ["0/2", "1/2"]
    one, two = (Table.load(tmp_path / name / "solver.json") for name in ("one", "two"))
    for field in ("sigmas", "nodes", "weights", "slope_scale", "sigma_scale"):
        assert np.abs(getattr(one, field) - getattr(two, field)).max() <= 1e-6


def test_one_of_two_processes_is_killed_and_both_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    config = toy_config(family="epd", calls=3, optimizer="adam", iterations=6, accumulate=2, screening=1)

    def work(name: str) -> object:
        train.run_distill(toy_mixture(), config, tmp_path / name, resume=name == "two")
        Workers.of_accelerate().end()
        return "done"

    assert in_processes(lambda: work("one"), 1) == ["done"]
    with monkeypatch.context() as deadly:
        kill_at(deadly, Workers, "mean", 7)
        assert_lost(in_processes(lambda: work("two"), patience=60))
    assert (tmp_path / "two" / "checkpoint.safetensors").exists()
    assert in_processes(lambda: work("two")) == ["done", "done"]
    assert (tmp_path / "two" / "solver.json").read_bytes() == (tmp_path / "one" / "solver.json").read_bytes()


def test_processes_without_a_part_are_told(caplog: pytest.LogCaptureFixture) -> None:
    class Alone(Workers):
        """The first of two, of whom the other has nothing to add."""

        def mean(self, parts: int, size: int, work: Callable[[int], torch.Tensor]) -> torch.Tensor:
            return Workers().mean(parts, size, work)

        def _sum(self, values: torch.Tensor) -> torch.Tensor:
            return values

    config = toy_config(optimizer="adam", accumulate=1, iterations=1, screening=1)
    plan = make_plan(toy_mixture(), config)
    shared = [u.state.vector for u in distill(toy_mixture(), plan, workers=Alone(0, 2))]
    assert "accumulate = 1 gives 1 of 2 processes work: set it to 2 or more" in caplog.text
    assert all(map(torch.equal, shared, (u.state.vector for u in distill(toy_mixture(), plan))))


def test_a_trial_step_that_overflows_in_one_process_is_refused_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third loss of the second process overflows, which Gauss-Newton takes for a step too long, and goes on."""
    monkeypatch.setenv("EPD_CACHE", str(tmp_path))
    losses: list[int] = []

    class Overflowing(Workers):
        def mean(self, parts: int, size: int, work: Callable[[int], torch.Tensor]) -> torch.Tensor:
            losses.extend([size] * (size == 1))
            return super().mean(parts, size, overflow if size == 1 and len(losses) % 3 == 0 else work)

    def overflow(part: int) -> torch.Tensor:
        if os.environ["RANK"] == "1":
            raise FloatingPointError("the state is not finite")
        return torch.zeros(1)

    def learn() -> object:
        Workers.of_accelerate()
        plan = make_plan(toy_mixture(), toy_config(family="epd", iterations=3))
        *_, last = distill(toy_mixture(), plan, workers=Overflowing(int(os.environ["RANK"]), 2))
        return [last.iteration, last.state.vector.tolist()]

    first, second = in_processes(learn)
    assert first == second and len(first) == 2 and isinstance(first[0], int)  # type: ignore[arg-type, index]


@pytest.mark.parametrize("seeds", [POOL_SEEDS, VALIDATION_SEEDS], ids=["pool", "validation"])
def test_a_cache_that_one_process_cannot_read_fails_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    """The file turns unreadable for the second process once both had made sure of it; nobody may wait for the other."""
    monkeypatch.setenv("EPD_CACHE", str(tmp_path))
    states = Teacher.states

    def unreadable(teacher: Teacher, asked: Sequence[int]) -> torch.Tensor:
        if os.environ["RANK"] == "1" and asked[0] == seeds:
            raise OSError(5, "Input/output error")
        return states(teacher, asked)

    monkeypatch.setattr(Teacher, "states", unreadable)

    def learn() -> object:
        workers = Workers.of_accelerate()
        plan = make_plan(toy_mixture(), toy_config(family="epd", iterations=1))
        return len(list(distill(toy_mixture(), plan, workers=workers)))

    assert in_processes(learn) == [
        ["ProcessError", "process 1 of 2 failed: OSError: [Errno 5] Input/output error"],
        ["OSError", "[Errno 5] Input/output error"],
    ]


@pytest.mark.parametrize("broken", ["make_plan", "_identity", "report_straightness", "_resumed"])
def test_what_fails_in_one_process_before_training_fails_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    whole, rank = getattr(train, broken), "0" if broken == "report_straightness" else "1"  # the first process reports

    def breaking(*arguments: object) -> object:
        if os.environ["RANK"] == rank:
            raise RuntimeError("broken here")
        return whole(*arguments)

    monkeypatch.setattr(train, broken, breaking)
    answers = in_processes(lambda: str(train.run_distill(toy_mixture(), toy_config(iterations=1), tmp_path / "run")))
    assert answers[int(rank)] == ["RuntimeError", "broken here"]
    assert answers[1 - int(rank)] == ["ProcessError", f"process {rank} of 2 failed: RuntimeError: broken here"]


def test_processes_of_different_speed_decide_on_one_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process's clock runs thrice as fast; the first one's counts."""
    monkeypatch.setenv("EPD_CACHE", str(tmp_path))

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 0.03 if os.environ.get("RANK") == "1" else 0.01
            return self.now

    def learn() -> object:
        workers = Workers.of_accelerate()
        plan = make_plan(toy_mixture(), toy_config(family="epd", minutes=0.01))
        *_, last = distill(toy_mixture(), plan, workers=workers)
        return [last.plan.config.screening, last.plan.iterations, last.iteration, last.state.vector.tolist()]

    monkeypatch.setattr(training, "time", Clock())
    first, second = in_processes(learn)
    monkeypatch.setattr(training, "time", Clock())
    monkeypatch.delenv("RANK", raising=False)
    assert first == second == in_processes(learn, count=1)[0]
