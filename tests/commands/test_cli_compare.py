"""`epd compare`: what the command adds to the measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import Run

from epd import cli
from epd.commands.inputs import named

# KDPM2 wraps a tensor in numpy in a way that numpy 2 calls old; the warning is raised in numpy's own module.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
QUICK = ["--model", "digits-exact", "--samples", "4", "--batch", "4", "--solvers", "Heun", "--tolerance", "1e-2"]


def test_compare_goes_on_where_it_was(run: Run, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["compare", *QUICK, "--tables", saved, "--out", out]
    assert run(*words, "--calls", "4")[0] == cli.OK
    first = (out / "comparison.json").read_text()
    code, _, err = run(*words, "--calls", "4")
    assert code == cli.OK and "cells are measured already" in err
    assert (out / "comparison.json").read_text() == first  # to the last digit of the seconds
    code, _, err = run(*words, "--calls", "4", "--labels", "3")
    assert code == cli.OK and "(conditions.labels was None, is [3]): measuring anew" in err


def test_tables_are_called_by_as_much_of_their_paths_as_tells_them_apart(saved: Path, tmp_path: Path) -> None:
    def names(*places: str) -> list[str]:
        for place in places:
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_bytes(saved.read_bytes())
        return [*named([str(tmp_path / place) for place in places])]

    assert names("a/3-calls/solver.json", "a/4-calls/solver.json", "one.json") == ["3-calls", "4-calls", "one"]
    # All longer where one has to be, so that a run's tables keep what they share.
    both = names("a/3-calls/solver.json", "a/4-calls/solver.json", "b/4-calls/solver.json")
    assert both == ["a/3-calls", "a/4-calls", "b/4-calls"]
    assert names("v1.1/solver.json", "v1.2/solver.json") == ["v1.1", "v1.2"]
    assert [*named(["sd15-rdpo-10x2", "sd15-rdpo-10x2"])] == ["sd15-rdpo-10x2"]
