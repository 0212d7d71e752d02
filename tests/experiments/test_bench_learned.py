"""The README's benchmark: which cells there are, that a stopped one goes on, and what is shown of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from epd.distill.config import OPEN
from epd.distill.families import FAMILIES as LEARNED
from epd.distill.teacher import POOL_SEEDS
from epd.evaluation import handmade
from epd.experiments import bench_learned, learned_results, readme_tables
from epd.experiments.learned_cells import FAMILIES, ONCE, SUBJECTS, Job, Subject, jobs
from epd.solvers.table import Table
from epd.solvers.table_json import loads

TRAINING = {"pool": 16, "validation": 8, "batch": 8, "iterations": 2, "screening": 1, "validate_every": 1}
TINY = Subject("digits-exact", 12, 8, torch.float32, 1e-2, tuning=4, training=TRAINING)
EULERS = ("Euler", "Euler AFS", "diffusers DDIM")
CELLS = ["digits-exact,s4s,3,0", "digits-exact,two-call,3,0"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen samples, two updates, two hand-made methods, of one three variants."""
    monkeypatch.setitem(SUBJECTS, "digits-exact", TINY)
    few = [solver for solver in handmade.handmade("ve") if solver.name in (*EULERS, "Heun")]
    monkeypatch.setattr("epd.evaluation.compare.handmade", lambda path: few)


def make(folder: Path, *only: str) -> None:
    assert bench_learned.main(["--only", *only, "--out", str(folder / "out"), "--work", str(folder / "work")]) == 0


def files(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.json")}


def test_seed_0_of_everything_comes_first_and_every_family_is_there() -> None:
    every = jobs()
    assert [job.seed for job in every] == sorted(job.seed for job in every) and len(every) == len(set(every))
    assert {job.family for job in every if job.subject == "digits-exact-flow"} >= {*FAMILIES, "ld3", "amed"}
    assert all(job.seed == 0 for job in every if job.family in ONCE)
    assert {family["family"] for family in (*FAMILIES.values(), *ONCE.values())} == set(LEARNED)
    for job in every:
        assert (job.config().calls, job.config().seed) == (job.calls, job.seed)
        assert job.config().points != "auto" or LEARNED[job.config().family].points  # the same on every machine


def test_no_sample_is_one_that_tables_are_learned_or_chosen_on() -> None:
    assert all(subject.samples < POOL_SEEDS for subject in SUBJECTS.values())
    assert all(subject.samples >= 4096 for name, subject in SUBJECTS.items() if name != "digits-exact")


def test_filters_choose_cells() -> None:
    assert jobs(["digits,dense-2,7,3"]) == [Job("digits", "dense-2", 7, 3)]
    assert {(job.family, job.seed) for job in jobs([",dense-1,,1"])} == {("dense-1", 1)}
    assert len(jobs([",s4s,3", ",epd,3"])) == 2 * len(SUBJECTS) * 5
    with pytest.raises(ValueError, match="no cell is 'digits,dense-3': give MODEL,FAMILY,CALLS,SEED, of MODEL digits"):
        jobs(["digits,dense-3"])
    with pytest.raises(ValueError, match="no cell is ',,,,0'"):
        jobs([",,,,0"])


def test_a_cell_holds_its_table_its_cost_and_what_it_was_measured_with(tmp_path: Path) -> None:
    make(tmp_path, CELLS[1])
    made = {path: json.loads(text) for path, text in files(tmp_path).items()}
    names = ("two-call-3-0", "teacher", "handmade-3", "handmade-5")
    assert set(made) == {f"digits-exact/{name}.json" for name in names}
    cell = made["digits-exact/two-call-3-0.json"]
    table = loads(json.dumps(cell["table"]))
    assert (cell["cell"]["calls"], cell["cell"]["evaluations"]) == (table.depth, table.nfe) == (3, 5)
    assert cell["digest"] == table.digest and cell["seconds"] >= 0 and cell["environment"]["threads"] == 1
    assert cell["judged"]["samples"] == 12 and cell["cell"]["interval"][0] < cell["cell"]["rmse"]
    measured = {one["group"]: one["solver"] for one in made["digits-exact/handmade-5.json"]["cells"]}
    assert measured.keys() == {"Euler / DDIM", "Heun"}
    tried = bench_learned.compared(replace(TINY, samples=TINY.tuning), {}, 5, tmp_path / "other", EULERS)
    assert len(tried) == 3 and measured["Euler / DDIM"] == min(tried, key=lambda cell: cell.rmse).solver
    assert made["digits-exact/teacher.json"]["trajectories"] == 24


def test_a_stopped_benchmark_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped once a table is learned, then once a cell is measured: nothing is learned or measured twice."""
    learned, compared, stops = bench_learned.learned, bench_learned.compared, iter((True, False, True))
    trained: list[Job] = []

    def counted(job: Job, smaller: Sequence[Table], results: Path, work: Path) -> dict[str, object]:
        trained.append(job)
        return learned(job, smaller, results, work)

    def stopping(*args: object, **options: object) -> tuple[object, ...]:
        if next(stops, False):
            raise KeyboardInterrupt
        return compared(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_learned, "learned", counted)
    monkeypatch.setattr(bench_learned, "compared", stopping)
    for measured in (False, True):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, *CELLS[::-1])
        stopped = files(tmp_path)
        assert set(stopped) == {"digits-exact/two-call-3-0.json", "digits-exact/teacher.json"}
        assert ("cell" in json.loads(stopped["digits-exact/two-call-3-0.json"])) == measured
    make(tmp_path, *CELLS[::-1])
    done = files(tmp_path)
    assert [job.family for job in trained] == ["two-call", "s4s"] and len(done) == 5
    assert all(done[path] == content for path, content in stopped.items())
    monkeypatch.setattr(bench_learned, "compared", lambda *args, **options: pytest.fail("measured again"))
    make(tmp_path, *CELLS[::-1])
    assert files(tmp_path) == done


def test_other_settings_are_learned_and_other_samples_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, CELLS[0])
    first = json.loads(files(tmp_path)["digits-exact/s4s-3-0.json"])
    monkeypatch.setitem(SUBJECTS, "digits-exact", replace(TINY, samples=16))
    make(tmp_path, CELLS[0])
    second = json.loads(files(tmp_path)["digits-exact/s4s-3-0.json"])
    assert second["judged"]["samples"] == 16 and second["seconds"] == first["seconds"]
    assert second["table"] == first["table"] and second["cell"]["rmse"] != first["cell"]["rmse"]
    monkeypatch.setitem(SUBJECTS, "digits-exact", replace(TINY, training={**TRAINING, "iterations": 3}))
    make(tmp_path, CELLS[0])
    assert json.loads(files(tmp_path)["digits-exact/s4s-3-0.json"])["digest"] != first["digest"]


def test_a_default_that_has_changed_is_another_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else cells of two recipes would stand in one table."""
    make(tmp_path, CELLS[0])
    first = json.loads(files(tmp_path)["digits-exact/s4s-3-0.json"])
    monkeypatch.setitem(OPEN["soap"], "lr", 0.5)
    make(tmp_path, CELLS[0])
    second = json.loads(files(tmp_path)["digits-exact/s4s-3-0.json"])
    assert second["digest"] != first["digest"] and (first["settings"]["lr"], second["settings"]["lr"]) == (0.02, 0.5)


def test_another_teacher_is_timed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, CELLS[0])
    first = files(tmp_path)["digits-exact/teacher.json"]
    make(tmp_path, *CELLS)
    assert files(tmp_path)["digits-exact/teacher.json"] == first  # all families share it
    monkeypatch.setitem(SUBJECTS, "digits-exact", replace(TINY, training={**TRAINING, "pool": 24}))
    make(tmp_path, CELLS[0])
    assert json.loads(first)["trajectories"] == 24
    assert json.loads(files(tmp_path)["digits-exact/teacher.json"])["trajectories"] == 32


def test_a_table_is_grown_from_that_of_fewer_calls_and_again_if_that_is_another(tmp_path: Path) -> None:
    make(tmp_path, "digits-exact,dense-1,5,0", "digits-exact,dense-1,3,1")
    three, five, other = (tmp_path / "out" / "digits-exact" / f"dense-1-{name}.json" for name in ("3-0", "5-0", "3-1"))
    small, large, stranger = (json.loads(path.read_text()) for path in (three, five, other))
    assert large["settings"]["grown_from"] == small["digest"] and small["settings"]["grown_from"] is None
    assert "cell" in large and "cell" not in small  # it was learned on the way only
    three.write_text(json.dumps({**stranger, "settings": small["settings"]}))
    make(tmp_path, "digits-exact,dense-1,5,0")
    assert json.loads(five.read_text())["settings"]["grown_from"] == stranger["digest"] != small["digest"]


def test_what_is_measured_is_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "digits-exact,dense-1,3,0")
    words = ["--print", "--draw", "--out", str(tmp_path / "out"), "--docs", str(tmp_path)]
    assert bench_learned.main(words) == 0
    said = capsys.readouterr().out
    assert "| sequential calls | 3 |\n| --- | ---: |\n| **dense-1** (learned) | " in said
    assert said.count(readme_tables.MISSING) == 2 * (len(SUBJECTS) - 1)
    assert said.strip().endswith("pareto_digits_exact.png")
    assert (tmp_path / "pareto_digits_exact.png").read_bytes().startswith(b"\x89PNG")


JUDGED = {"guidance": None, "samples": 64, "batch": 8, "dtype": "float64", "tolerance": 1e-6, "tuning": 4}


def cell(solver: str, calls: int, evaluations: int, rmse: float, learned: bool) -> dict[str, object]:
    return {
        "solver": solver, "group": solver, "learned": learned, "asked": calls, "calls": calls, "steps": calls,
        "evaluations": evaluations, "schedule": "log SNR", "rmse": rmse, "seconds": 0.01, "median": rmse / 2,
        "interval": [rmse / 1.25, rmse * 1.25],
    }  # fmt: skip


def run_of(family: str, calls: int, evaluations: int, seed: int, rmse: float) -> dict[str, object]:
    return {
        "family": family, "calls": calls, "seed": seed, "seconds": 40.0 + seed, "judged": JUDGED,
        "settings": {"lr": 0.02, "calls": calls, "seed": seed, "grown_from": f"that of seed {seed}",
                     "widened_from": f"that of {calls} calls"},
        "table": {"provenance": {"path": "ve"}}, "cell": cell(family, calls, evaluations, rmse, True),
        "environment": {"python": "3.11", "threads": 1 + seed % 2},
    }  # fmt: skip


def made_up() -> Iterator[tuple[str, dict[str, object]]]:
    for seed, rmse in enumerate((0.05, 0.07, 0.06)):
        yield f"dense-1-5-{seed}", run_of("dense-1", 5, 5, seed, rmse)
    yield "dense-2-5-0", run_of("dense-2", 5, 10, 0, 0.04)
    yield "dense-1-memory-1-5-0", run_of("dense-1-memory-1", 5, 5, 0, 0.09)
    yield "dense-1-7-0", {"family": "dense-1", "calls": 7, "seed": 0}  # learned, not measured yet
    for at, rmse in ((5, 0.15), (10, 0.11)):
        yield f"handmade-{at}", {"at": at, "judged": JUDGED, "cells": [cell("UniPC", at, at, rmse, False)]}
    yield "teacher", {"seconds": 12.3, "trajectories": 5120, "environment": {"threads": 2}}


def placed(folder: Path) -> Path:
    for name, content in made_up():
        path = folder / "learned" / "digits-exact" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def test_the_readme_shows_the_middle_seed_beside_hand_made_solvers(tmp_path: Path) -> None:
    text = readme_tables.rendered("learned-digits-exact", placed(tmp_path))
    assert "64 samples of `digits-exact`" in text and text.endswith("python 3.11, threads 1 / 2.</sub>")
    calls, evaluations, typical = [part for part in text.split("\n\n") if part.startswith("| ")][:3]
    assert calls.splitlines() == [
        "| sequential calls | 5 |", "| --- | ---: |",
        "| **dense-2** (learned) | **0.0400** |", "| **dense-1** (learned) | 0.0600 |", "| UniPC | 0.1500 |",
    ]  # fmt: skip
    assert evaluations.splitlines() == [
        "| evaluations | 5 | 10 |", "| --- | ---: | ---: |",
        "| **dense-2** (learned) |  | **0.0400** |", "| **dense-1** (learned) | **0.0600** |  |",
        "| UniPC | 0.1500 | 0.1100 |",
    ]  # fmt: skip
    assert "| **dense-1** (learned) | 0.0300 |" in typical and "Milliseconds" not in text
    (tmp_path / "learned" / "digits-exact").rename(tmp_path / "learned" / "digits-exact-flow")
    short = readme_tables.rendered("learned-digits-exact-flow", tmp_path)
    assert [part for part in short.split("\n\n") if part.startswith("| ")] == [calls, evaluations]


def test_the_readme_shows_the_spread_of_seeds_samples_and_time(tmp_path: Path) -> None:
    text = readme_tables.rendered("seeds-digits-exact", placed(tmp_path))
    assert "| `dense-2` | 0.0400 (0.0400 of 1) |\n| `dense-1` | 0.0600 (0.0700 of 3) |\n| `dense-1-memory-1` |" in text
    assert "| `dense-1` | 0.0480 to 0.0750 |" in text and "| `dense-1` | 5, 40 s on 1, 41 s on 2 |" in text
    assert "The teacher's 5,120 trajectories, which all runs share, took 12 s on 2." in text
    assert "| 7 |" not in text


def test_of_two_seeds_the_worse_one_is_shown(tmp_path: Path) -> None:
    path = placed(tmp_path) / "learned" / "digits-exact" / "dense-1-5-2.json"
    path.unlink()  # seeds 0 and 1 are left, of 0.05 and 0.07
    assert "| **dense-1** (learned) | 0.0700 |" in readme_tables.rendered("learned-digits-exact", tmp_path)
    text = readme_tables.rendered("seeds-digits-exact", tmp_path)
    assert "| `dense-1` | 0.0700 (0.0700 of 2) |" in text and "| `dense-1` | 0.0560 to 0.0875 |" in text


def test_runs_of_two_recipes_are_not_shown_together(tmp_path: Path) -> None:
    path = placed(tmp_path) / "learned" / "digits-exact" / "dense-1-5-2.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "settings": {**content["settings"], "lr": 0.04}}))
    message = r"dense-1 of digits-exact was learned with different settings \(lr was 0.02, is 0.04\): measure again"
    with pytest.raises(ValueError, match=message):
        readme_tables.rendered("seeds-digits-exact", tmp_path)


def test_what_is_not_measured_is_said_to_be_so(tmp_path: Path) -> None:
    for name in learned_results.RENDERERS:
        assert readme_tables.rendered(name, tmp_path / "nowhere") == readme_tables.MISSING
        if name != "ahead" and not name.endswith("digits-exact"):
            assert readme_tables.rendered(name, placed(tmp_path)) == readme_tables.MISSING
    path = tmp_path / "learned" / "digits-exact" / "handmade-5.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "judged": {**JUDGED, "samples": 32}}))
    with pytest.raises(ValueError, match="results of digits-exact are of different samples"):
        readme_tables.rendered("learned-digits-exact", tmp_path)
