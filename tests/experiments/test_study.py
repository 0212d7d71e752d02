"""The study: which cells there are, that it goes on where it was stopped, and who is said to be ahead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from epd.distill.teacher import POOL_SEEDS
from epd.evaluation import handmade
from epd.experiments import bench_learned, readme_tables
from epd.experiments.cells_command import _tried
from epd.experiments.learned_cells import Subject
from epd.experiments.study import make, page
from epd.experiments.study.__main__ import main
from epd.experiments.study.cells import (
    ABLATIONS,
    CALLS,
    HEADLINE,
    OURS,
    PEERS,
    WORLDS,
    Begin,
    Run,
    Transfer,
    Untrained,
    cells,
    later,
)  # fmt: skip
from epd.experiments.study.parts import ablation_rows
from epd.experiments.study.pictures import ablation_figure
from epd.experiments.study.results import Entry, Verdict, verdict

TRAINING = {"pool": 16, "validation": 8, "batch": 8, "iterations": 2, "screening": 1, "validate_every": 1}
TINY = Subject("digits-exact", 12, 8, torch.float32, 1e-2, tuning=4, training=TRAINING)


def made(folder: Path, *only: str) -> dict[str, bytes]:
    """The files of the study after these cells are made."""
    words = ["--only", *only, "--out", str(folder / "out"), "--work", str(folder / "work"), "--processes", "1"]
    assert main(words) == 0
    return {path.relative_to(folder / "out").as_posix(): path.read_bytes() for path in folder.rglob("out/*/*.json")}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen samples, two updates, one hand-made method and GITS."""
    for name in WORLDS:
        monkeypatch.setitem(WORLDS, name, TINY)
    few = [solver for solver in handmade.handmade("ve") if solver.name == "Euler"]
    monkeypatch.setattr("epd.evaluation.compare.handmade", lambda path: few)
    monkeypatch.setattr(make, "FOUND", {"digits-exact": ("GITS",)})


def test_every_solver_is_there_at_every_cost_with_its_seeds() -> None:
    every = cells()
    assert len(every) == len(set(every)) and len({cell.path(Path()) for cell in every}) == len(every)
    assert every[: len(HEADLINE)] == [Begin(name) for name in HEADLINE]  # before what shares their teachers
    for name, seeds in HEADLINE.items():
        own = {(c.family, c.calls, c.seed) for c in every if isinstance(c, Run) and c.subject == name}
        assert own == {(f, at, seed) for f in (*OURS, *PEERS) for at in CALLS for seed in seeds}
        untrained = [(c.family, c.calls) for c in every if isinstance(c, Untrained) and c.subject == name]
        assert {*untrained} == {(family, at) for family in ("hand-made", "PAS") for at in CALLS}
    subjects = list(dict.fromkeys(cell.subject for cell in every[len(HEADLINE) :]))
    assert subjects == ["digits-exact", "shapes-exact", "digits", "ablations", "transfer"]
    outside = later()
    assert not {*every} & {*outside} and {*cells(["shapes-exact-guidance-2"])} <= {*outside}
    for cell in (*every, *outside):
        if isinstance(cell, Run):
            config = cell.config()
            assert (config.calls, config.seed) == (cell.calls, cell.seed)
        if isinstance(cell, Transfer):
            assert cell.run() in (*every, *outside)


def test_an_ablation_differs_in_one_thing_from_the_run_beside_it() -> None:
    for name, ablation in ABLATIONS.items():
        own, other = (Run("ablations", each, 5, 0).config().model_dump() for each in (name, ablation.against))
        changed = {key for key in own if own[key] != other[key]}
        pairs = {"two-call": {"family", "points"}, "teacher-2": {"teacher", "teacher_multiplier"}}
        pairs["ld3"] = {"family", "points", "learn"}
        assert len(changed) == (name != ablation.against) or changed == pairs.get(name), (name, changed)


def test_nothing_is_measured_on_what_is_learned_from_and_all_families_get_as_much() -> None:
    assert all(world.samples < POOL_SEEDS for world in WORLDS.values())
    for name in HEADLINE:
        configs = [Run(name, family, 5, 0).config() for family in (*OURS, *PEERS)]
        assert len({(c.pool, c.batch, c.screening, c.iterations, c.teacher_tolerance) for c in configs}) == 1


def test_filters_choose_cells() -> None:
    assert cells(["digits-exact,LD3,7,1"]) == [Run("digits-exact", "LD3", 7, 1)]
    ablated = cells(["ablations"])
    assert {cell.subject for cell in ablated} == {"ablations"} and {cell.seed for cell in ablated} == {0, 1, 2}
    assert {cell.seed for cell in cells() if cell.subject == "ablations"} == {0}
    seed = cells(["digits,,3,4"])  # made only when it is asked for
    assert seed == [Run("digits", family, 3, 4) for family in (*OURS, *PEERS)] and not {*seed} & {*cells()}
    with pytest.raises(ValueError, match="no cell is 'digits,LD4': give SUBJECT,FAMILY,CALLS,SEED, of SUBJECT digits"):
        cells(["digits,LD4"])


def test_a_stopped_study_goes_on_and_says_what_it_cost(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tmp_path, "digits-exact,teacher", "digits-exact,dense-1,3,0")
    assert set(first) == {"digits-exact/teacher.json", "digits-exact/dense-1-3-0.json"}
    wanted = ("digits-exact,,3,0", "ablations,true-levels,,0", "ablations,base,,0", "transfer,dense-1,3")
    second = made(tmp_path, *wanted)
    assert all(second[path] == content for path, content in first.items())
    read = {path: json.loads(content) for path, content in second.items()}
    untrained = read["digits-exact/handmade-3.json"]["cells"]
    assert {cell["group"] for cell in untrained} == {"Euler / DDIM", "GITS + Euler / DDIM"}
    (corrected,) = read["digits-exact/pas-3.json"]["cells"]
    assert corrected["group"] == "PAS + Euler / DDIM" and corrected["training"] > 0
    moved = read["transfer/digits-exact--digits-dense-1-3-0.json"]
    assert moved["settings"]["digest"] == read["digits-exact/dense-1-3-0.json"]["digest"]
    assert moved["cell"]["rmse"] == read["digits-exact/dense-1-3-0.json"]["cell"]["rmse"]  # the same world here
    assert read["ablations/true-levels-5-0.json"]["settings"]["grown_from"] is None
    wide, narrow = (read[f"digits-exact/{family}-3-0.json"] for family in ("dense-2", "dense-1"))
    assert wide["settings"]["widened_from"] == narrow["digest"] and "widened_from" not in narrow["settings"]
    for path, content in read.items():
        assert content["cpu_seconds"] >= 0 and content["environment"]["threads"] == 1, path
    monkeypatch.setattr(bench_learned, "learned", lambda *args: pytest.fail("learned again"))
    monkeypatch.setattr(bench_learned, "compared", lambda *args: pytest.fail("measured again"))
    assert made(tmp_path, *wanted) == second
    page_of = page.printed(tmp_path / "out")
    inside = {*second} - {cell.path(Path()).as_posix() for cell in later()}
    assert "| `ablations` |" in page_of and f"{len(inside)} cells took" in page_of
    assert "| levels that the network is told | the true ones | 5 |" in page_of


def test_other_settings_are_learned_anew(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path, "digits,dense-1,3,0")["digits/dense-1-3-0.json"]
    monkeypatch.setitem(WORLDS, "digits", replace(TINY, training={**TRAINING, "iterations": 3}))
    assert json.loads(made(tmp_path, "digits,dense-1,3,0")["digits/dense-1-3-0.json"])["digest"] != (
        json.loads(first)["digest"]
    )


def test_of_several_processes_others_go_on_where_a_cell_fails(caplog: pytest.LogCaptureFixture) -> None:
    def make(numbered: tuple[int, object]) -> None:
        if numbered[0] == 2:
            raise FloatingPointError("lost")

    assert [_tried(make, (number, None)) for number in (1, 2, 3)] == [True, False, True]
    assert "cell 2 failed" in caplog.text and "lost" in caplog.text


def test_the_best_of_ours_is_held_against_the_best_of_others_at_no_more_cost() -> None:
    calls, evaluations = (lambda e: e.calls), (lambda e: e.evaluations)
    found = [
        Entry("dense-1", 5, 5, (0.05, 0.06, 0.08)), Entry("dense-1", 3, 3, (0.2,)),
        Entry("dense-2", 5, 10, (0.04, 0.05)),
        Entry("EPD", 5, 8, (0.09, 0.1)), Entry("UniPC", 5, 5, (0.12,)), Entry("ParaDiGMS", 5, 50, (0.01,)),
    ]  # fmt: skip
    even = verdict(found, evaluations, 5)
    assert even is not None and (even.own.name, even.other.name) == ("dense-1", "UniPC")
    assert even.ratio == pytest.approx(2) and (even.low, even.high) == pytest.approx((1.5, 2.4))
    assert even.text() == "**2.00x** (1.50 to 2.40)<br>dense-1 0.0600<br>UniPC 0.1200"
    at_eight = verdict(found, evaluations, 9)
    assert at_eight is not None and at_eight.other.name == "EPD" and at_eight.other.error == 0.1  # of two the worse
    at_calls = verdict(found, calls, 5)
    assert at_calls is not None and (at_calls.own.name, at_calls.other.name) == ("dense-2", "ParaDiGMS")
    assert "**behind**" in at_calls.text() and verdict(found, calls, 3) is None
    close = Verdict(Entry("dense-1", 3, 3, (0.1, 0.2)), Entry("S4S", 3, 3, (0.15, 0.25)))
    assert "**not beyond chance**" in close.text()


JUDGED = {"guidance": None, "samples": 64, "batch": 8, "dtype": "float64", "tolerance": 1e-6, "tuning": 4}


def run_of(family: str, seed: int, rmse: float) -> dict[str, Any]:
    cell = {
        "solver": family, "group": family, "learned": True, "asked": 5, "calls": 5, "steps": 5, "evaluations": 5,
        "schedule": "learned", "rmse": rmse, "seconds": 0.01,
    }  # fmt: skip
    return {
        "family": family, "calls": 5, "seed": seed, "seconds": 4.0, "judged": JUDGED, "settings": {"calls": 5},
        "table": {"provenance": {"path": "ve"}}, "cell": cell, "environment": {"threads": 1}, "cpu_seconds": 90.0,
        "measuring_cpu_seconds": 30.0,
    }  # fmt: skip


def placed(folder: Path) -> Path:
    errors = {"base": (0.05, 0.06), "memory-0": (0.1, 0.18), "adam": (0.06, 0.05), "points-2": (0.04, 0.05)}
    for family, seeds in errors.items():
        for seed, rmse in enumerate(seeds):
            path = folder / "study" / "ablations" / f"{family}-5-{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(run_of(family, seed, rmse)))
    return folder


def test_what_a_part_is_worth_is_told_seed_by_seed(tmp_path: Path) -> None:
    folder = placed(tmp_path)
    text = readme_tables.rendered("study-ablations", folder)
    assert "| memory | no earlier slope | 5 | 0.1800 (0.1000 to 0.1800) | 3.00x (2.00 to 3.00) |" in text
    said = readme_tables.rendered("study-failures", folder).split("\n\n")
    assert said == [
        "Makes no difference beyond the training seed: optimiser: Adam.",
        "Is worse with every seed: memory: no earlier slope, 3.00x.",
        "Is better with every seed: points a call: 2 points, 0.83x.",
    ]
    cost = readme_tables.rendered("study-cost", folder)
    # 90 and 30 s each
    assert "4 cells took 8 minutes of one core, 4 minutes of two; 4 later ones, which `--only` makes" in cost
    more = folder / "study" / "digits" / "LD3-5-3.json"
    more.parent.mkdir()
    more.write_text(json.dumps(run_of("LD3", 3, 0.1)))
    cost = readme_tables.rendered("study-cost", folder)
    assert "4 cells took 8 minutes of one core, 4 minutes of two; 5 later ones, which `--only` makes" in cost
    assert "| `digits`, later | 0 | 90 | 30 | 2.0 |" in cost
    more.unlink()
    files = {path.relative_to(folder / "study").as_posix(): json.loads(path.read_text())
             for path in (folder / "study").rglob("*.json")}  # fmt: skip
    figure = ablation_figure([row for row in ablation_rows(files) if row.name != "base"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "points a call: 2 points", "memory: no earlier slope", "optimiser: Adam",
    ]  # fmt: skip


def test_who_is_ahead_is_told_by_the_median_too(tmp_path: Path) -> None:
    for family, rmse, median in (("dense-1", 0.05, 0.01), ("S4S", 0.06, 0.002)):
        content = run_of(family, 0, rmse)
        path = tmp_path / "study" / "digits" / f"{family}-5-0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**content, "cell": {**content["cell"], "median": median}}))
    assert "**1.20x** (1.20 to 1.20)<br>dense-1 0.0500" in readme_tables.rendered("study-ahead", tmp_path)
    assert "**0.20x** (0.20 to 0.20) **behind**<br>dense-1 0.0100" in readme_tables.rendered("study-median", tmp_path)


def test_what_is_not_measured_is_said_to_be_so(tmp_path: Path) -> None:
    for name in page.RENDERERS:
        assert readme_tables.rendered(name, tmp_path) == readme_tables.MISSING
