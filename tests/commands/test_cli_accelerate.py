"""`--accelerate` from the command line: learned with, interrupted and gone on with, refused without, sampled with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.command import Run

from epd import cli
from epd.runs.records import Records
from epd.solvers.table import Table

WORDS = ("distill", "--model", "digits", "--calls", 3, "--points", 1, "--optimizer", "adam", "--pool", 4, "--batch", 2,
         "--accumulate", 1, "--validation", 4, "--iterations", 4, "--screening", 1, "--schedule", "logsnr",
         "--teacher", "dpmpp", "--teacher-multiplier", 2, "--inspect", 0)  # fmt: skip
ON = ("--accelerate", "reuse:steps=2")
RECORDED = ({"name": "reuse", "steps": [2], "where": "all"},)


def test_a_table_is_learned_with_an_accelerator(
    run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "x"
    assert run(*WORDS, *ON, "--out", whole)[0] == cli.OK
    learned = Table.load(whole / "solver.json")
    assert learned.depth == 3 and learned.provenance.accelerators == RECORDED

    keep = Records.add

    def interrupted(records: Records, iteration: int, *what: object) -> None:
        if iteration == 3:
            raise KeyboardInterrupt
        keep(records, iteration, *what)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Records, "add", interrupted)
        code, _, err = run(*WORDS, *ON, "--out", out)
        assert code == cli.FAILED and "add --resume" in err and not (out / "solver.json").exists()
    code, _, err = run(*WORDS, "--out", out, "--resume")
    assert code == cli.FAILED and "accelerate" in err and "use the same options" in err
    code, _, err = run(*WORDS, *ON, "--out", out, "--resume")
    assert code == cli.OK and "--model digits --accelerate reuse:steps=2" in err
    assert (out / "solver.json").read_bytes() == (whole / "solver.json").read_bytes()

    states = []
    for words, warned in ((ON, False), ((), True)):
        sample = ("sample", "--model", "digits", "--table", out, "-n", 2, "--states", "--out", tmp_path / "samples")
        code, _, err = run(*sample, *words)
        assert code == cli.OK and ("learned with the accelerators [{'name': 'reuse'" in err) == warned, err
        states.append(np.load(tmp_path / "samples" / "samples.npz")["states"])
    assert not np.array_equal(*states)
