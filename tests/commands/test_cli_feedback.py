"""`epd distill-feedback`: the plan, the file, and the commands that take it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.command import Run
from helpers.forked import in_processes
from safetensors.torch import load_file

from epd import cli

WORDS = ("distill-feedback", "--steps", 2, "--begin", 1, "--count", 1, "--iterations", 1, "--batch", 1, "--pool", 1,
         "--validation", 1, "--schedule", "logsnr", "--teacher", "dpmpp", "--teacher-multiplier", 4,
         "--scale-lr", 0.1)  # fmt: skip


def test_a_dry_run_says_what_it_would_cost(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(*WORDS, "--dry-run", "--out", tmp_path / "run")
    assert code == cli.OK and not (tmp_path / "run").exists()
    assert "6 blocks a call with feedback, 3 plain calls a sample" in out
    code, out, _ = run(*WORDS, "--count", 3, "--dry-run")
    assert code == cli.OK and "give count <= 2" in out


def test_feedback_is_learned_and_sampled_with(
    run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*WORDS, "--out", "run")
    assert code == cli.OK, err
    assert "--table run/solver.json --accelerate ilf:module=run/feedback.safetensors" in err
    pictures = []
    for words in ((), ("--accelerate", "ilf:module=run/feedback.safetensors")):
        code, _, err = run("sample", "--table", "run/solver.json", "-n", 1, "--states", "--out", "samples", *words)
        assert code == cli.OK, err
        pictures.append(np.load("samples/samples.npz")["states"])
    assert not np.array_equal(*pictures)
    assert json.loads(Path("run/config.json").read_text())["loop"]["count"] == 1
    code, _, err = run(*WORDS, "--out", "run")
    assert code == cli.FAILED and "--resume" in err
    code, _, err = run("sample", "--table", "run/solver.json", "--accelerate", "ilf:module=run/solver.json")
    assert code == cli.FAILED and "learn it again with `epd distill-feedback`" in err


@pytest.mark.slow
def test_two_processes_learn_what_one_does(run: Run, cache: Path, tmp_path: Path) -> None:
    """As torchrun starts them, but forked, which takes a second."""
    words = [str(word) for word in (*WORDS, "--batch", 2, "--pool", 2, "--accumulate", 2, "--iterations", 2, "--out")]
    assert run(*words, tmp_path / "one")[0] == cli.OK
    assert in_processes(lambda: cli.main([*words, str(tmp_path / "two")])) == [cli.OK, cli.OK]
    one, two = (load_file(str(tmp_path / name / "feedback.safetensors")) for name in ("one", "two"))
    assert one["scale"].any() and all(float((one[name] - two[name]).abs().max()) <= 1e-6 for name in one)
