"""The page on models of one's own: its file goes through its three commands as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command import Run

import epd
from epd import cli
from epd.commands.models import load_model
from epd.denoisers.checks import check_model
from epd.denoisers.gradients import model_has_gradients

SECTION = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text(encoding="utf-8")
BUDGET = {
    "distill": ["--pool", "64", "--batch", "64", "--validation", "64", "--iterations", "2", "--inspect", "0",
                "--schedule", "polynomial"],
    "sample": ["-n", "4"],
    "compare": ["--samples", "16", "--solvers", "Euler"],
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the page, in the working directory."""
    (block,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    assert block.startswith("# mine.py\n")
    (tmp_path / "mine.py").write_text(block)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_file_goes_through_the_commands_of_the_section(run: Run, cache: Path, mine: Path) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [words[0] for words in commands] == ["distill", "sample", "compare"]
    for words in commands:
        code, _, err = run(*words, *BUDGET[words[0]])
        assert code == cli.OK, err
    table = epd.Table.load("runs/mine/solver.json")
    assert table.depth == 5 and table.provenance.model == "mine"
    assert np.load("runs/mine/samples/samples.npz")["samples"].shape == (4, 8, 8, 1)
    assert "(learned)" in (mine / "runs/mine/compare/comparison.md").read_text()


def test_the_function_of_arrays_is_sound_and_has_no_gradients(mine: Path) -> None:
    model = load_model("mine.py:make_of_arrays")
    check_model(model, decode=True)
    assert not model_has_gradients(model) and model_has_gradients(load_model("mine.py:make"))
