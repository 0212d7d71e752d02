"""`epd report`: options in, a page out; trajectories and samples of an embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import Run
from helpers.report_pages import Page, comparison, run_folder

from epd import cli
from epd.distill.config import DistillConfig
from epd.evaluation import report as report_module
from epd.evaluation.inspection import Inspection

QUICK = ["--samples", "2", "--gallery", "3,5", "--tolerance", "1e-2"]


@pytest.mark.slow
def test_a_run_of_an_embedded_model_has_all_parts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[Inspection] = []

    def drawn(found: Inspection, *_: object) -> None:
        followed.append(found)

    for name in ("error", "trajectory", "projection", "directions", "shape", "end"):
        monkeypatch.setattr(report_module.figures, name, drawn)
    monkeypatch.setattr(report_module.html, "png_of_figure", lambda _: b"figure")
    learned = DistillConfig(calls=5, pool=64)
    config = {"model": "digits-exact", "conditions": {}, "config": learned.model_dump(mode="json")}
    path, page = run_folder(tmp_path / "mine", config, comparison()), tmp_path / "pages" / "page.html"
    code, out, err = run("report", path, "--out", page, *QUICK)
    assert code == cli.OK, err
    assert out.startswith("mine: 5 calls, 0.63x the error") and str(page) in err
    found = Page(page.read_text())
    assert [shown.seed for shown in followed[0].shown] == [3, 5] and followed[0].samples == 2
    captions = [word.split(":")[0] for word in found.words if word.endswith("over these") or word == "converged"]
    assert captions == ["learned, 5 calls", "iPNDM-2, 5 calls", "converged"]
    assert "The same seeds everywhere: 3, 5." in found.words
    # The command that it names learns with the recorded configuration.
    line = next(line for line in found.text.splitlines() if line.startswith("epd distill"))
    options = cli._parse("distill", line.split()[2:])
    assert options.distill_config() == learned and options.model == "digits-exact"


def test_what_cannot_be_reported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    code, _, err = run("report", "empty")
    assert code == cli.FAILED and "empty holds none of solver.json, comparison.json" in err
    assert run("report")[0] == cli.USAGE and not Path("report.html").exists()


def test_without_a_model_the_page_says_what_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module.html, "png_of_figure", lambda _: b"figure")
    path, page = run_folder(tmp_path / "mine", {"model": "some/pipeline"}), tmp_path / "page.html"
    assert run("report", path, "--out", page)[0] == cli.OK
    found = Page(page.read_text())
    assert "Not followed, without a model: " in found.words and f"epd report {path} --model MODEL" in found.words
