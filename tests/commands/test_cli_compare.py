"""`epd compare`: what the command adds to the measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import Run

from epd import cli

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
