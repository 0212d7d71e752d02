"""The demo and `epd compare`, on budgets that fit into a test: all files are there, and what is said was measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command import Run, table

from epd import cli
from epd.distill.config import DistillConfig
from epd.evaluation import plots
from epd.evaluation.comparison import Cell, Comparison
from epd.experiments import demo
from epd.solvers.table import Table


def cell(solver: str, asked: int, rmse: float, learned: bool = False, evaluations: int | None = None) -> Cell:
    return Cell(solver, solver, learned, asked, asked, evaluations or asked, asked, "log SNR", rmse, 0.1)


def comparison(*cells: Cell) -> Comparison:
    return Comparison("digits", "ve", 1.0, 8, 8, 0, "float32", 1e-3, 8, (5,), cells, {}, {})


def test_the_verdict_is_read_off_the_cells() -> None:
    cells = [cell("epd", 5, 0.04, True, 8), cell("A", 5, 0.06), cell("B", 5, 0.07), cell("B", 8, 0.05)]
    text = demo.verdict(comparison(*cells))
    assert "5 sequential calls (8 evaluations), RMSE 0.0400" in text and "at 5 calls: A, 0.0600" in text
    assert "at 8, as many evaluations: B, 0.0500." in text
    assert "None of them comes as near with up to 8 calls." in text
    near = demo.verdict(comparison(*cells, replace(cell("A", 10, 0.01), seconds=0.25)))
    assert "The first of them to come as near is A with 10 calls, which take 2.5 times as long." in near
    text = demo.verdict(comparison(cell("epd", 5, 0.04, True), *cells[1:]))
    assert "as many evaluations" not in text and text.count("0.0600") == 1


def test_every_file_that_the_closing_names_has_a_line(tmp_path: Path) -> None:
    text = demo.closing(tmp_path, 61.4)
    assert "Done in 61 s" in text and text.count(str(tmp_path)) >= 8
    for name in ("samples.png", "trajectory.png", "compare/pareto.png", "solver.json", "tb/"):
        assert str(tmp_path / name) in text


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RIVALS", ("diffusers DDIM", "iPNDM-3 AFS"))
    monkeypatch.setattr(demo, "COUNTS", (5,))
    for name, value in {"SAMPLES": 16, "TUNING": 4, "SHOWN": 8, "TRACED": 2}.items():
        monkeypatch.setattr(demo, name, value)
    small = {"calls": 5, "points": 2, "schedule": "logsnr", "iterations": 1, "batch": 16, "accumulate": 1, "pool": 16}
    config = DistillConfig.model_validate({**small, "validation": 16, "teacher": "euler", "teacher_multiplier": 1})
    monkeypatch.setattr(demo, "config", lambda: config)
    exact = plots.converged  # half of the demo's time, were the drawn trajectory as exact as it is to be
    monkeypatch.setattr(plots, "converged", lambda model, noise, sigmas, *_: exact(model, noise, sigmas, 1e-2, 1e-2))


@pytest.mark.slow
def test_the_demo_leaves_what_it_says(
    tiny: None, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out)]) == 0
    said = capsys.readouterr().out
    named = re.findall(rf"^  ({re.escape(str(out))}\S*) ", said, re.MULTILINE)
    assert len(named) == 7 and all(Path(name).exists() for name in named)
    learned = Table.load(out / "solver.json")
    assert learned.depth == 5 and learned.digest in (out / "solver.txt").read_text()
    found = Comparison.from_json((out / "compare" / "comparison.json").read_text())
    ours = next(c for c in found.cells if c.learned)
    assert (ours.calls, ours.evaluations) == (5, learned.nfe) and f"RMSE {ours.rmse:.4f} to the exact" in said
    for name in ("samples", "teacher", "handmade", "learned", "trajectory"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert list((out / "tb").iterdir())


@pytest.mark.slow
def test_compare_measures_what_it_is_given(run: Run, saved: Path, tmp_path: Path) -> None:
    words = ["--model", "digits-exact", "--tables", saved, "--calls", "3", "5", "--samples", "16", "--batch", "16"]
    code, out, err = run("compare", *words, "--solvers", "Euler", "--tolerance", "1e-4", "--out", tmp_path / "c")
    assert code == cli.OK and "(learned)" in out and "comparison.json" in err
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [c["asked"] for c in found["cells"] if c["learned"]] == [table().depth]
    assert {c["asked"] for c in found["cells"] if not c["learned"]} == {3, 5, table().nfe}
    code, _, err = run("compare", *words, "--solvers", "Eulr", "--out", tmp_path / "d")
    assert code == cli.FAILED and "no solver is named 'Eulr'" in err and not (tmp_path / "d").exists()
