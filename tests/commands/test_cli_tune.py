"""`epd tune`: what the command adds to the search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import Run

from epd import Table, cli

# KDPM2 wraps a tensor in numpy in a way that numpy 2 calls old; the warning is raised in numpy's own module.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
MINE = """
import torch, epd
def make():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    return epd.GaussianMixture(means, 0.3, sigma_min=0.02, sigma_max=20.0, name="mine")
"""


@pytest.mark.slow
def test_tune_leaves_a_solver_and_the_evidence(
    run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    words = ["tune", "--model", "mine.py:make", "--calls", "2", "--points", "1", "--minutes", "0.01", "--samples", "16"]
    code, out, err = run(*words)
    assert code == cli.OK, err
    table, content = Table.load("runs/tune/solver.json"), json.loads(Path("runs/tune/tune.json").read_text())
    assert (table.depth, table.nfe, table.digest) == (2, 2, content["digest"])
    assert content["verdict"] in out and "2 sequential calls, 2 evaluations" in out
    assert content["rival"]["asked"] == 2 and not content["rival"]["learned"]
    assert "epd sample --model mine.py:make --table runs/tune/solver.json" in err
    before = Path("runs/tune/2-calls-1-points/solver.json").stat().st_mtime_ns
    assert run(*words)[0] == cli.OK and Path("runs/tune/2-calls-1-points/solver.json").stat().st_mtime_ns == before


def test_a_budget_is_asked_for(run: Run) -> None:
    code, _, err = run("tune", "--model", "digits-exact")
    assert code == cli.USAGE and "give one of latency_ms, calls, quality" in err
