"""`epd refine-acceleration`: the plan, the file, and the commands that take it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.command import Run

from epd import cli
from epd.commands.options import ModelArguments, RefineAcceleration
from epd.rl.acceleration_config import AccelerationConfig

WORDS = ("refine-acceleration", "--model", "digits", "--steps", 2, "--grid", 4, "--schedule", "logsnr", "--groups", 2,
         "--group-size", 4, "--epochs", 1, "--held-out", 64, "--evaluate-every", 2, "--channels", 4, "--decay", 0.5,
         "--reward", "rewards.py:dark")  # fmt: skip
REWARDS = "def dark(images, prompts):\n    return 1 - images.mean((1, 2, 3))\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text(REWARDS)
    return tmp_path


def test_no_option_of_the_trainer_hides_one_of_the_model() -> None:
    own = {"table", "reward", "weights", "watch", "features", "held_out_prompts", "out", "resume", "dry_run"}
    assert not set(AccelerationConfig.model_fields) & set(ModelArguments.model_fields)
    assert set(RefineAcceleration.model_fields) == {
        *AccelerationConfig.model_fields, *ModelArguments.model_fields, *own
    }  # fmt: skip


def test_a_dry_run_says_what_it_would_cost(run: Run, folder: Path) -> None:
    code, out, err = run(*WORDS, "--dry-run", "--out", "run")
    assert code == cli.OK and not Path("run").exists(), err
    assert "4 steps of one call each" in out and "at most 64 training" in out


def test_a_policy_is_learned_and_sampled_with(run: Run, folder: Path) -> None:
    code, _, err = run(*WORDS, "--out", "run")
    assert code == cli.OK, err
    assert "--table run/solver.json --accelerate rapid3:policy=run" in err
    report = json.loads(Path("run/report.json").read_text())
    assert report["plain"]["calls"] == 4 and report["tested"] == 1 and report["share of the heads"] > 0
    assert report["same number of plain steps"]["steps"] == max(2, round(report["policy"]["calls"]))
    words = ("sample", "--table", "run/solver.json", "-n", 4, "--states", "--out", "samples")
    states = []
    for more in ((), ("--accelerate", "rapid3:policy=run")):
        code, _, err = run(*words, *more)
        assert code == cli.OK, err
        states.append(np.load("samples/samples.npz")["states"])
    assert np.array_equal(*states) == (not report["passed"] or report["policy"]["calls"] == 4)
    code, _, err = run(*WORDS, "--out", "run")
    assert code == cli.FAILED and "--resume" in err


def test_it_is_a_policy_of_refine_too(run: Run, folder: Path) -> None:
    plans = set()
    for name in (("refine-acceleration",), ("refine", "--policy", "acceleration"), ("refine", "--policy=acceleration")):
        code, plan, err = run(*name, *WORDS[1:], "--dry-run")
        assert code == cli.OK and "policy       step and cache" in plan, err
        plans.add("\n".join(line for line in plan.splitlines() if not line.startswith("seconds")))
    assert len(plans) == 1
    code, _, err = run("-v", "refine", "--grid", 1, "--policy", "acceleration")
    assert code == cli.USAGE and "grid = 1" in err


def test_what_is_missing_or_in_the_way_is_told(run: Run, folder: Path) -> None:
    code, _, err = run("refine-acceleration", "--model", "digits")
    assert code == cli.USAGE and "--reward is missing" in err
    code, _, err = run(*WORDS, "--weights", 1, 2)
    assert code == cli.USAGE and "2 weights for 1 rewards" in err
    code, _, err = run(*WORDS, "--accelerate", "reuse:steps=1", "--out", "other")
    assert code == cli.FAILED and "has reuse already" in err
    code, _, err = run(*WORDS, "--discriminator", 1, "--out", "other")
    assert code == cli.FAILED and "discriminator = 1 needs features of pictures (--features file.py:function)" in err
