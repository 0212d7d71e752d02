"""The study of refinement goes on where it was and measures every solver on the same fresh samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from epd.denoisers.shapes_exact import ShapesExact, shapes_exact
from epd.denoisers.shapes_world import prompts
from epd.distill.teacher import POOL_SEEDS
from epd.evaluation import handmade
from epd.experiments import (
    bench_refine,
    readme_tables,
    refined_cells,
    refined_pictures,
    refined_results,
    refined_scores,
)
from epd.experiments.refined_cells import EFFICIENCY, SUBJECTS, Job, Subject, jobs
from epd.experiments.refined_scores import SCORES, TUNING_SEEDS, Judge, bootstrap
from epd.pipelines.options import ModelOptions
from epd.rl.objective import BASELINES
from epd.solvers.table_json import loads

DISTILLING = {"family": "dense", "points": 1, "pool": 8, "validation": 4, "batch": 4, "iterations": 1, "screening": 1,
              "validate_every": 1, "schedule": "polynomial", "teacher_tolerance": 1e-1}  # fmt: skip
REFINING = {"steps": 2, "groups": 2, "group_size": 2, "held_out": 64, "evaluate_every": 1, "converged": 0, "std": 0.1}
TINY = Subject(
    "shapes-exact", 5.0, (2,), ("Euler", "log SNR", 6), 12, 8, 4, 4, 1e-1, DISTILLING, REFINING, {"steps": 1}
)
CELLS = ["shapes-exact,reference", "shapes-exact,handmade", "shapes-exact,distilled,2,0", "shapes-exact,refined,2,0"]


def small_model(name: str, options: ModelOptions) -> ShapesExact:
    """One rendering of each prompt."""
    return shapes_exact(prompts=options.texts or (), guidance=options.guidance or 1.0, renderings=1)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen samples, two updates, two hand-made methods, a small model."""
    monkeypatch.setitem(SUBJECTS, "shapes-exact", TINY)
    few = [solver for solver in handmade.handmade("ve") if solver.name in ("Euler", "Euler AFS", "iPNDM-2")]
    monkeypatch.setattr(refined_scores, "handmade", lambda path: few)
    monkeypatch.setattr(refined_pictures, "handmade", lambda path: few)
    monkeypatch.setattr(refined_cells, "load_model", small_model)
    for cached in (refined_scores.judge_of, refined_cells.prompted):
        cached.cache_clear()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that asks for cells makes them."""
    return tmp_path_factory.mktemp("cells")


@pytest.fixture
def cells(shared: Path, tmp_path: Path) -> Path:
    """A folder with one cell of each kind."""
    if not (shared / "out").exists():
        make(shared, *CELLS)
    return shutil.copytree(shared, tmp_path / "cells")


def make(folder: Path, *only: str) -> dict[str, Any]:
    words = ["--only", *only, "--out", str(folder / "out"), "--work", str(folder / "work")]
    assert bench_refine.main(words) == 0
    return refined_results.contents(folder / "out")


def test_cells_are_made_by_model_and_seed_and_filters_choose_them() -> None:
    every = jobs()
    assert len(every) == len(set(every)) == len({job.path(Path()) for job in every})
    assert {(job.subject, job.calls) for job in every if job.what == "refined"} == {
        (name, calls) for name, subject in SUBJECTS.items() for calls in subject.calls
    }
    assert every.index(Job("shapes", "distilled", 3, 0)) < every.index(Job("shapes", "refined", 3, 0))
    assert jobs(["shapes,refined,4,2"]) == [Job("shapes", "refined", 4, 2)]
    assert {job.seed for job in jobs(["shapes-exact,rloo-shared"])} == {0, 1, 2}
    first = jobs(["shapes,refined,5,1", "shapes,,3,0", "shapes"])
    assert [job.what for job in first[:4]] == ["refined", "handmade", "distilled", "refined"]
    assert len(first) == len(set(first)) == len(jobs(["shapes"])) and jobs([""]) == every
    with pytest.raises(ValueError, match="no cell is 'digits': give MODEL,WHAT,CALLS,SEED, of MODEL shapes-exact,"):
        jobs(["digits"])


def test_a_refinement_may_start_at_the_tables_of_one_call_fewer_of_all_seeds() -> None:
    assert Job("shapes", "refined", 3, 1).fewer() == tuple(Job("shapes", "refined", 2, seed) for seed in (0, 1, 2))
    assert not Job("shapes", "refined", 2, 1).fewer() and not Job("shapes-exact", "refined", 3, 1).fewer()


def test_the_study_has_every_baseline_with_and_without_shared_noise() -> None:
    kinds = {(row["baseline"], row["shared_noise"]) for row in EFFICIENCY.values() if row["groups"] == 16}
    assert kinds == {(baseline, shared) for baseline in BASELINES for shared in (True, False)}
    for what, row in EFFICIENCY.items():
        config = Job("shapes-exact", what, 2, 1).refining()
        assert (config.baseline, config.shared_noise, config.seed) == (row["baseline"], row["shared_noise"], 1)
        assert config.samples == 256  # all of them have the same budget
        assert Job("shapes-exact", what, 2, 1).base() == Job("shapes-exact", "distilled", 2, 0)


def test_a_table_of_two_points_is_refined_and_measured_beside_hand_made_solvers_of_as_many_evaluations() -> None:
    job = Job("shapes", "refined-k2", 4, 1)
    assert job.base() == Job("shapes", "distilled-k2", 4, 1) and job.base().distilling().points == 2
    assert job.distilling().points == 2 and Job("shapes", "refined", 4, 1).base().distilling().points == 1
    assert {job.calls for job in jobs(["shapes,handmade"])} == {2, 3, 4, 5, 6, 8, 10}
    assert {job.what for job in jobs(["shapes-exact"])}.isdisjoint({"distilled-k2", "refined-k2"})


def test_no_sample_is_one_that_solvers_are_chosen_learned_or_tested_on() -> None:
    for subject in SUBJECTS.values():
        assert subject.samples <= TUNING_SEEDS and TUNING_SEEDS + subject.tuning <= POOL_SEEDS
    task = TINY.task()
    judge = Judge(TINY)
    assert not set(judge.draws.noises) & {*judge.tuning.noises, *task.tested(64).noises}
    drawn = task.draw(64, 2, True, torch.Generator().manual_seed(0))
    assert set(task.texts(drawn.conditions)) <= set(prompts("train"))
    assert set(task.texts(judge.draws.conditions)) <= set(prompts("held-out"))
    with pytest.raises(ValueError, match="samples reach into the noise"):
        Judge(replace(TINY, samples=TUNING_SEEDS + 1))


def test_cells_hold_scores_sample_by_sample(cells: Path) -> None:
    made = refined_results.contents(cells / "out")
    names = ("reference-6", "handmade-2", "distilled-2-0", "refined-2-0", "teacher")
    assert set(made) == {f"shapes-exact/{name}.json" for name in names}
    refined, given = made["shapes-exact/refined-2-0.json"], made["shapes-exact/distilled-2-0.json"]
    assert refined["settings"]["base"] == given["digest"] and refined["environment"]["threads"] == 1
    assert [test["rollouts"] for test in refined["course"]] == [4, 8] and refined["evaluations"] == 16
    assert loads(json.dumps(refined["table"])).depth == 2
    assert {one["group"] for one in made["shapes-exact/handmade-2.json"]["solvers"]} == {"Euler / DDIM", "iPNDM"}
    for scores in (refined["scores"], given["scores"], made["shapes-exact/handmade-2.json"]["solvers"][0]["scores"]):
        assert all(len(scores[name]) == 12 for name in SCORES) and len(scores["distance"]) == 4
        assert scores["frechet"] > 0


def test_nothing_is_made_twice_but_what_has_other_settings(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = refined_results.contents(cells / "out")
    with monkeypatch.context() as patched:
        for name in ("distilled", "refining"):
            patched.setattr(bench_refine, name, lambda *args: pytest.fail("learned again"))
        patched.setattr(Judge, "measured", lambda *args: pytest.fail("measured again"))
        assert make(cells, *CELLS) == made
    monkeypatch.setitem(SUBJECTS, "shapes-exact", replace(TINY, refining={**REFINING, "lr": 0.01}))
    again = make(cells, CELLS[3])
    assert again["shapes-exact/refined-2-0.json"]["settings"]["lr"] == 0.01
    assert again["shapes-exact/distilled-2-0.json"] == made["shapes-exact/distilled-2-0.json"]


def test_other_samples_are_measured_anew_without_learning(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = refined_results.contents(cells / "out")["shapes-exact/distilled-2-0.json"]
    monkeypatch.setitem(SUBJECTS, "shapes-exact", replace(TINY, samples=16))
    monkeypatch.setattr(bench_refine, "distilled", lambda *args: pytest.fail("learned again"))
    refined_scores.judge_of.cache_clear()
    second = make(cells, CELLS[2])["shapes-exact/distilled-2-0.json"]
    assert second["digest"] == first["digest"] and len(second["scores"]["all"]) == 16
    assert second["scores"]["all"][:12] == first["scores"]["all"]


def test_the_study_of_efficiency_keeps_courses_of_one_table(cells: Path) -> None:
    made = make(cells, "shapes-exact,grpo,2,1")
    cell = made["shapes-exact/grpo-2-1.json"]
    assert cell["settings"]["base"] == made["shapes-exact/distilled-2-0.json"]["digest"]
    assert "table" not in cell and "scores" not in cell and cell["course"][0]["gain"].keys() >= {"shapes-graded"}


def test_bootstrap_intervals_are_paired_and_agree_with_the_normal_approximation() -> None:
    g = torch.Generator().manual_seed(0)
    common = torch.randn(1, 4000, generator=g, dtype=torch.float64)
    rows = torch.cat([common, common + 0.1 + 0.01 * torch.randn(1, 4000, generator=g, dtype=torch.float64)])
    value, low, high = bootstrap(rows[:1], lambda m: m[..., 0])
    half = 1.96 * float(rows[0].std()) / 4000**0.5
    assert value == pytest.approx(float(rows[0].mean())) and (high - low) / 2 == pytest.approx(half, rel=0.1)
    value, low, high = bootstrap(rows, lambda m: m[..., 1] - m[..., 0])
    assert low < value < high and value == pytest.approx(0.1, abs=1e-3) and high - low < 1e-3
    assert bootstrap(rows, lambda m: m[..., 1] - m[..., 0]) == (value, low, high)


JUDGED = {"guidance": 5.0, "samples": 400, "batch": 8, "ends": 4, "tolerance": 1e-3}


def scores(right: int, frechet: float = 0.1) -> dict[str, Any]:
    values = [1.0] * right + [0.0] * (400 - right)
    return {**dict.fromkeys(SCORES, values), "distance": [0.1] * 4, "frechet": frechet}


def made_up() -> Iterator[tuple[str, dict[str, Any]]]:
    common = {"judged": JUDGED, "environment": {"python": "3.11"}}
    yield "reference-50", {**common, "what": "reference", "calls": 50, "seed": 0, "scores": scores(400)}
    rivals = [{"group": name, "scores": scores(right)} for name, right in (("Euler", 300), ("UniPC", 200))]
    yield "handmade-3", {**common, "what": "handmade", "calls": 3, "seed": 0, "solvers": rivals}
    for seed, right in enumerate((360, 380)):
        cell = {**common, "calls": 3, "seed": seed}
        yield f"distilled-3-{seed}", {**cell, "what": "distilled", "scores": scores(280)}
        cell["settings"] = {"seed": seed, "lr": 0.1}
        run = {"cpu_seconds": 10.0 + seed, "passed": None if seed else {}, "evaluations": 1234}
        yield f"refined-3-{seed}", {**cell, **run, "what": "refined", "scores": scores(right)}
    yield "refined-4-0", {"what": "refined", "calls": 4, "seed": 0}  # learned, not measured yet
    for what, most in (("rloo", 0.04), ("grpo-shared", 0.02)):
        for seed in range(2):
            course = [{"rollouts": r, "gain": {"shapes-graded": most * r / 400 + seed / 1e3}} for r in (100, 200, 400)]
            settings = {**EFFICIENCY[what], "seed": seed, "lr": 0.1}
            cell = {"what": what, "calls": 3, "seed": seed, "settings": settings, "course": course}
            yield f"{what}-3-{seed}", {**cell, "environment": {"python": "3.11"}}


def placed(folder: Path) -> Path:
    for name, content in made_up():
        path = folder / "refined" / "shapes-exact" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def test_the_readme_compares_with_the_best_hand_made_solver_and_says_how_much_of_the_gap_is_closed(
    tmp_path: Path,
) -> None:
    text = readme_tables.rendered("refined-shapes-exact", placed(tmp_path))
    row = next(line for line in text.splitlines() if line.startswith("| 3 calls | `all` |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[2].startswith("1.000 ") and cells[3].startswith("0.750 [") and cells[3].endswith("(Euler)")
    assert [cell.split()[0] for cell in cells[4:8]] == ["0.700", "0.925", "+0.225", "+0.175"]
    assert cells[8] == "the same" and cells[9].startswith("70 % [")
    assert "| 3 calls | 0.700, 0.700 | 0.900, 0.950 | 1 of 2 | 1,234 | 10 to 11 s |" in text
    assert "| UniPC | 0.500 / 0.500 |" in text and "4 calls" not in text


def test_tables_of_two_points_are_held_against_as_many_calls_and_as_many_evaluations(tmp_path: Path) -> None:
    folder = placed(tmp_path) / "refined" / "shapes-exact"
    six = [{"group": name, "scores": scores(right)} for name, right in (("Euler", 340), ("UniPC", 372))]
    content = {"judged": JUDGED, "environment": {"python": "3.11"}, "calls": 3, "seed": 0}
    for name, more in {
        "distilled-k2-3-0": {"what": "distilled-k2", "scores": scores(350)},
        "refined-k2-3-0": {"what": "refined-k2", "scores": scores(392), "settings": {"seed": 0}, "cpu_seconds": 5.0,
                           "passed": {}, "evaluations": 99},
        "handmade-6": {"what": "handmade", "calls": 6, "solvers": six},
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps({**content, **more}))
    lines = readme_tables.rendered("refined-shapes-exact", tmp_path).splitlines()
    row = next(line for line in lines if line.startswith("| 3 calls, 2 points each | `all` |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[3].endswith("(Euler)") and [cell.split()[0] for cell in cells[3:8]] == [
        "0.750", "0.875", "0.980", "+0.105", "+0.230"
    ]  # fmt: skip
    assert cells[8].startswith("+0.050 [") and cells[8].endswith("(UniPC, 0.930)") and cells[9].startswith("92 % [")
    assert "| Euler | 0.750 / 0.750 | 0.850 / 0.850 |" in lines
    assert any(line.startswith("| 3 calls | `all` | 1.000") and "| the same |" in line for line in lines)


def test_tables_that_were_refined_differently_are_not_averaged(tmp_path: Path) -> None:
    path = placed(tmp_path) / "refined" / "shapes-exact" / "refined-3-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {"seed": 1, "lr": 0.2}}))
    with pytest.raises(ValueError, match="refinements of shapes-exact had different settings"):
        readme_tables.rendered("refined-shapes-exact", tmp_path)


def test_efficiency_is_shown_best_first(tmp_path: Path) -> None:
    text = readme_tables.rendered("refine-efficiency", placed(tmp_path))
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == ["| rloo, own noise, 16 x 16", "| grpo, shared noise, 16 x 16"]
    assert "+0.0405 (+0.040, +0.041)" in rows[0] and rows[0].endswith(" | 200 |")
    path = tmp_path / "refined" / "shapes-exact" / "rloo-3-1.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "settings": {**content["settings"], "lr": 0.2}}))
    with pytest.raises(ValueError, match="refinements of shapes-exact had different settings"):
        readme_tables.rendered("refine-efficiency", tmp_path)


def test_what_is_not_measured_or_of_other_samples_is_not_shown(tmp_path: Path) -> None:
    for name in refined_results.RENDERERS:
        assert readme_tables.rendered(name, tmp_path / "nowhere") == readme_tables.MISSING
    path = placed(tmp_path) / "refined" / "shapes-exact" / "handmade-3.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "judged": {**JUDGED, "samples": 2}}))
    with pytest.raises(ValueError, match="results of shapes-exact are of different samples"):
        readme_tables.rendered("refined-shapes-exact", tmp_path)


def test_pictures_are_drawn_of_what_is_there(cells: Path) -> None:
    make(cells, "shapes-exact,rloo-shared,2,0")
    assert bench_refine.main(["--draw", "--out", str(cells / "out"), "--docs", str(cells)]) == 0
    for name in ("refine_efficiency", "refine_samples"):
        assert (cells / f"{name}.png").read_bytes().startswith(b"\x89PNG")
