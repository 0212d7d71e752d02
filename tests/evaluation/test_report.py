"""Reports: verdicts against numbers by hand, and pages that load nothing whatever a run holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.command import table
from helpers.report_pages import Page, cell, comparison, run_folder

from epd.distill.config import DistillConfig
from epd.evaluation import report as report_module
from epd.evaluation.report import report
from epd.evaluation.report_commands import commands, flags
from epd.evaluation.report_html import markdown_tables
from epd.evaluation.report_run import ReportError, at_calls, at_evaluations, read_run, read_runs, verdicts

HOSTILE = "<script>alert(1)</script><img src=http://x.org/a.png>\"'&"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn is tested elsewhere, and takes longer than all else here."""
    monkeypatch.setattr(report_module.html, "png_of_figure", lambda _: b"figure")


def test_the_verdict_is_what_the_comparison_says(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "mine", compared=comparison()))
    # 0.063 / 0.1 beside iPNDM at 5 calls, the peer aside; 0.063 / 0.07 at 8 evaluations, which it makes in 5 calls.
    expected = "5 calls, 0.63x the error of the best hand-made solver at equal calls (iPNDM-2), 0.90x at equal"
    overlap = "95 % intervals overlap with that of DPM++ 2M AFS"
    ahead = "GITS, a learned peer, is ahead of it at equal calls (0.05 to 0.063)"
    assert verdicts(run) == [f"{expected} evaluations (DPM++ 2M AFS); {overlap}; {ahead}."]
    written = json.loads((tmp_path / "mine" / "compare" / "comparison.json").read_text())
    by_hand = [c for c in written["cells"] if not c["learned"] and c["training"] is None]
    (own,) = run.cells()
    assert run.comparison is not None
    for found, at in ((at_calls(run.comparison, own), 5), (at_evaluations(run.comparison, own), 8)):
        assert found is not None
        assert found.ratio == 0.063 / min(c["rmse"] for c in by_hand if c["asked"] == at)


def test_a_solver_that_is_behind_is_told_so(tmp_path: Path) -> None:
    worse = comparison(cells=(cell("mine", 5, 0.3, True, evaluations=8), cell("iPNDM", 5, 0.1)))
    run = read_run(run_folder(tmp_path / "mine", compared=worse))
    (text,) = verdicts(run)
    assert "3.00x the error" in text and "none was measured at its 8 evaluations" in text


def test_a_cell_is_of_the_table_with_its_cost_and_name(tmp_path: Path) -> None:
    own, other = cell("mine", 5, 0.1, True, evaluations=8), cell("other", 5, 0.2, True, evaluations=8)
    longer = cell("mine-9", 9, 0.01, True, evaluations=9)
    for cells, name, found in (
        ((other, own, longer), "mine", ["mine"]),  # by name where several cost as much
        ((other, longer), "renamed", ["other"]),  # the only one of its cost
        ((other, own), "renamed", []),  # any of two: neither
        ((longer,), "mine", []),
    ):
        made = dataclasses.replace(comparison(), cells=(*cells, cell("iPNDM", 5, 0.1)))
        run = read_run(run_folder(tmp_path / str(len(list(tmp_path.iterdir()))) / name, compared=made))
        assert [c.solver for c in run.cells()] == found


def test_without_a_comparison_the_run_speaks_for_itself(tmp_path: Path, no_figures: None) -> None:
    path = run_folder(tmp_path / "mine")
    learned = table()
    metrics = dataclasses.replace(learned.provenance, metrics={"validation_rmse": 0.012345})
    (path / "solver.json").unlink()
    dataclasses.replace(learned, provenance=metrics).save(path / "solver.json")
    run = read_run(path)
    (text,) = verdicts(run)
    assert text.startswith("5 calls, 8 evaluations a sample; the run itself measured RMSE on held-out noise 0.01235")
    page = Page(report([run], {}, {"mine": "digits-exact"}))
    assert f"epd compare --model digits-exact --tables {path} --calls 5 --out {path}/compare" in page.words
    assert f"epd report {path} --model digits-exact" in page.words


def test_a_refinement_that_found_nothing_better_measured_nothing_of_its_table(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "mine")
    (path / "report.json").write_text(json.dumps({"refined": False}))
    assert verdicts(read_run(path)) == [
        "5 calls, 8 evaluations a sample; it is the given table, as none was better beyond doubt, and no other solver "
        "stands beside it."
    ]


@pytest.mark.parametrize("content", [{}, {"run": {"solver.json": True}}])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, content: dict[str, object]) -> None:
    for name in content:
        run_folder(tmp_path / name)
    hint = "it has folders that hold one: run" if content else "give the folder of a finished run"
    with pytest.raises(ReportError, match=hint):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="is no folder"):
        read_run(tmp_path / "absent")


def test_nothing_in_a_run_becomes_markup(tmp_path: Path, no_figures: None) -> None:
    config = {"model": HOSTILE, "conditions": {HOSTILE: HOSTILE}, "config": {HOSTILE: 1, "schedule": HOSTILE}}
    cells = (*comparison(HOSTILE).cells, cell(f"{HOSTILE} | **x**", 5, 0.01), cell("a\n\n| b\n", 5, 0.3))
    compared = comparison(cells=cells, model=HOSTILE, environment={HOSTILE: HOSTILE})
    path = run_folder(tmp_path / "<b>mine", config, compared)
    runs = read_runs([path, run_folder(tmp_path / "other")])
    page = Page(report(runs, {}, {"<b>mine": HOSTILE}))
    assert HOSTILE in page.text
    ours = [attrs for attrs in page.all("p") if attrs.get("class") == "verdict"]
    assert not page.all("script") and len(page.all("b")) == len(ours) == 2  # as a run, too, is called
    assert all(value.startswith(("data:image/png;base64,", "#run-")) for value in page.loaded)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_several_runs_have_an_overview_and_share_a_comparison(tmp_path: Path, no_figures: None) -> None:
    paths = [run_folder(tmp_path / "mine"), tmp_path / "compare", run_folder(tmp_path / "other", {"model": "else"})]
    paths[1].mkdir()
    (paths[1] / "comparison.json").write_text(comparison().to_json())
    runs = read_runs(paths)
    assert [run.kind for run in runs] == ["distill", "compare", "distill"]
    page = Page(report(runs, {}, {}))
    anchors = {attrs["id"] for attrs in page.all("h2")}
    assert anchors == {"run-1", "run-2", "run-3"} == {link[1:] for link in page.loaded if link.startswith("#")}
    shared = [word for word in page.words if "0.63x the error" in word]
    assert len(shared) == 2 and shared[1] == f"mine: {shared[0]}"  # of the run, and of the comparison
    assert runs[2].comparison is None  # it is of another model
    assert page.words[page.words.index("0.63x") :][1] == "0.90x"


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [run_folder(tmp_path / name / "5-calls") for name in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == [str(path) for path in paths]


def test_tuning_is_told_at_equal_time(tmp_path: Path, no_figures: None) -> None:
    path = run_folder(tmp_path / "tuned")
    mine, rival = (dataclasses.asdict(c) for c in (cell("learned", 5, 0.02, True), cell("iPNDM", 6, 0.05)))
    tried = [{"calls": 5, "points": 2, "latency_ms": 12.5, "rmse": None}]
    content = {"budget": {"calls": 5}, "verdict": "Chosen.", "tried": tried, "cell": mine, "rival": rival}
    (path / "tune.json").write_text(json.dumps(content))
    run = read_run(path)
    sentence = "5 calls, 0.40x the error of the best hand-made solver in as much time (iPNDM at 6 calls)."
    assert run.kind == "tune" and verdicts(run) == [sentence]
    page = Page(report([run], {}, {}))
    assert {"Chosen.", "12.5", "not learned"} <= set(page.words)
    assert f"epd tune --model MODEL --calls 5 --out {path}" in page.text


def test_the_same_runs_make_the_same_bytes(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "mine", {"model": "digits-exact"}, comparison())
    first, second = (report(read_runs([path]), {}, {}) for _ in range(2))
    assert first == second
    images = [attrs for attrs in Page(first).all("img")]
    assert len(images) == 3 and all(attrs["alt"] for attrs in images)  # at equal calls, at equal evaluations, the table


def test_commands_are_options_that_differ_and_are_quoted() -> None:
    config = DistillConfig(calls=7, learn=("nodes", "weights"), afs=False, checkpointing=True, minutes=2.5)
    found = flags({**config.model_dump(mode="json"), "unknown; rm": 1, "schedule": "a b; c"}, DistillConfig)
    expected = " --calls 7 --no-afs --learn nodes weights --schedule 'a b; c' --minutes 2.5 --checkpointing"
    assert found == expected
    assert flags(DistillConfig().model_dump(mode="json"), DistillConfig) == ""


def test_a_comparison_alone_says_how_it_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(comparison().to_json())
    run = read_run(tmp_path)
    (text,) = commands(run, "digits-exact")
    expected = "epd compare --model digits-exact --tables TABLES --calls 5 --samples 16 --seed 0 --out"
    assert text == f"{expected} {tmp_path}"


def test_markdown_becomes_tables() -> None:
    page = Page(markdown_tables("Of `x`, **bold**:\n\n| a | b |\n| --- | ---: |\n| **m** (learned) | **0.1** |\n"))
    assert [tag for tag, _ in page.tags].count("td") == 2 and [tag for tag, _ in page.tags].count("strong") == 2
    assert "Of x, bold:" in page.words and page.all("td")[1] == {"class": "number"}
