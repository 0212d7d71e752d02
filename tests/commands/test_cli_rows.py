"""`--rows N`: whatever a command does, its network never gets more rows in one call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import Run
from torch import Tensor, nn

import epd
from epd import cli

QUICK = ["--model", "digits", "--calls", "3", "--pool", "8", "--batch", "8", "--accumulate", "1", "--validation", "4"]
QUICK += ["--iterations", "1", "--schedule", "polynomial", "--teacher", "euler", "--teacher-multiplier", "2"]


@pytest.fixture
def calls() -> Iterator[list[int]]:
    """Rows of each call of the embedded network."""
    seen: list[int] = []

    def hook(module: nn.Module, args: tuple[object, ...]) -> None:
        if type(module).__name__ == "DiTTransformer2DModel":
            assert isinstance(args[0], Tensor)
            seen.append(len(args[0]))

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    yield seen
    handle.remove()


@pytest.mark.parametrize("optimizer", ["adam", "gauss-newton"])
def test_distill(run: Run, cache: Path, calls: list[int], tmp_path: Path, optimizer: str) -> None:
    words = ["distill", *QUICK, "--family", "two-call", "--optimizer", optimizer]
    code, out, err = run(*words, "--rows", "3", "--dry-run", "--out", tmp_path / "x")
    assert code == cli.OK and "at most 3 in one network call" in out, err
    assert max(calls) <= 3
    tables = []
    for limit in ([], ["--rows", "3"]):
        calls.clear()
        code, _, err = run(*words, *limit, "--out", tmp_path / f"run{len(limit)}")
        assert code == cli.OK, err
        tables.append(epd.Table.load(tmp_path / f"run{len(limit)}" / "solver.json"))
        assert max(calls) == (3 if limit else 16)  # fans of two points for eight samples
    # Gauss-Newton takes differences of float32 outputs over 2e-3: 8 samples do not settle what rounding changes there.
    tolerance = 1e-3 if optimizer == "adam" else 5e-2
    np.testing.assert_allclose(tables[1].sigmas, tables[0].sigmas, rtol=tolerance)
    assert run(*words, "--rows", "2", "--resume", "--out", tmp_path / "run2")[0] == cli.OK  # it is no other run


def test_sample(run: Run, calls: list[int], tmp_path: Path) -> None:
    states = []
    for limit in ([], ["--rows", "3"]):
        calls.clear()
        words = ["sample", "--model", "digits", "--rule", "heun", "--calls", "4", "-n", "7", "--states"]
        assert run(*words, *limit, "--out", tmp_path)[0] == cli.OK
        with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
            states.append(file["states"])
        assert max(calls) == (3 if limit else 7)
    np.testing.assert_allclose(states[1], states[0], rtol=1e-3, atol=1e-3)


def test_compare(run: Run, calls: list[int], tmp_path: Path) -> None:
    words = ["compare", "--model", "digits", "--samples", "4", "--calls", "3", "--solvers", "Euler"]
    assert run(*words, "--tolerance", "0.1", "--rows", "2", "--out", tmp_path)[0] == cli.OK
    assert max(calls) == 2


def test_a_limit_of_no_rows_is_refused(run: Run) -> None:
    for verb in ("distill", "sample", "compare"):
        code, _, err = run(verb, "--rows", "0")
        assert code == cli.USAGE and "rows" in err and "greater than or equal to 1" in err


def test_the_limit_is_public() -> None:
    model = epd.limit_rows(epd.GaussianMixture(torch.zeros(1, 1, 2, 2), 0.5), 5)
    assert model.rows() == 5
