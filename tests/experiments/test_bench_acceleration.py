"""The benchmark of policies goes on where it was, and says what it measures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from epd.denoisers import shapes_32
from epd.experiments import acceleration_results
from epd.experiments import acceleration_worlds as worlds
from epd.experiments import bench_acceleration as bench
from epd.experiments.acceleration_pictures import draw_decisions
from epd.experiments.acceleration_worlds import (
    WORLDS,
    DigitsJudge,
    Shapes32Judge,
    ShapesJudge,
    learning,
    shapes_prompts,
)
from epd.experiments.bench_acceleration import Job, between, jobs, main, needed, table_cell
from epd.experiments.markdown import MISSING
from epd.rl.task import Rollout


def test_filters_choose_cells() -> None:
    assert len(jobs()) == 3 * (4 * (3 + 4) + 2) + 3 * 3 + 1
    assert [job.name for job in jobs(["shapes-32,three,,0"])] == ["shapes-32-three-20-0.9-0"]
    assert jobs(["shapes-32,three,,0"])[0].config().block == 16
    assert {job.decay for job in jobs(["digits,both,,0"])} == {0.97, 0.9, 0.8}
    assert [job.name for job in jobs(["digits,tpdm,24,1"])] == ["digits-tpdm-24-0.9-1"]
    with pytest.raises(ValueError, match="no cell is 'digits,all': give MODEL,HEADS,CALLS,SEED, of MODEL two-kinds, "):
        jobs(["digits,all"])


def test_what_is_static_is_measured_between_whole_numbers_of_steps() -> None:
    def told(steps: int) -> dict[str, float]:
        return {"rmse": 1.0 / steps}

    assert between(told, 4.5, 8)["rmse"] == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert between(told, 8.0, 8)["rmse"] == 1 / 8


@pytest.mark.parametrize("begin", [1.0, 4.6, 8.0])
def test_as_many_steps_as_are_needed_are_found_from_anywhere(begin: float) -> None:
    def told(steps: int) -> dict[str, float]:
        asked.append(steps)
        return {"rmse": 1.0 / steps, "graded": 1 - 1.0 / steps}

    asked: list[int] = []
    for name in ("digits", "shapes"):  # less of the one is better, more of the other
        score = WORLDS[name].score
        assert needed(told, begin, 8, score, told(5)) == 5
        assert needed(told, begin, 8, score, {"rmse": 0.225, "graded": 0.775}) == pytest.approx(4.5)
        assert needed(told, begin, 8, score, {"rmse": 2.0, "graded": -1.0}) == 1
        assert needed(told, begin, 8, score, {"rmse": 0.1, "graded": 0.9}) is None
    assert {1, 8} >= {*asked} - {*range(2, 8)}


@pytest.mark.slow
@pytest.mark.parametrize("heads", ["tpdm", "judged"])
def test_a_cell_is_made_once(
    heads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"steps": 1, "groups": 1, "group_size": 4, "held_out": 64, "tolerance": 0.1, "epochs": 1}
    monkeypatch.setattr(bench, "LEARNING", {**bench.LEARNING, **small})
    monkeypatch.setitem(WORLDS, "digits", replace(WORLDS["digits"], grid=4))
    monkeypatch.setattr(worlds, "SAMPLES", 10)
    monkeypatch.setattr(worlds, "TOLERANCE", 0.1)
    monkeypatch.setattr(bench, "TEACHER", {"samples": 2, "fine": 6})
    words = ["--only", f"digits,{heads},,0", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    tmp_path.joinpath("work").mkdir()
    assert main(words) == 0
    (path,) = tmp_path.glob("digits/*.json")
    cell = json.loads(path.read_text())
    assert cell["policy"]["rmse"] > 0 and set(cell["beside"]) == {"fewer plain steps", "one mask", "GITS"}
    assert cell["calls"] == pytest.approx(sum(cell["computed in each step"]))
    assert len(cell["calls by kind"]) == 10
    assert all(len(row["steps"]) == 4 and row["steps"][0] == "1" for row in cell["report"]["who computes"])
    if cell["calls"] == 4:  # all is computed: so it is by the mask of all steps
        assert cell["policy"] == cell["plain"] == cell["beside"]["one mask"]
        assert cell["as good"]["one mask"] == 4
    assert cell["config"]["discriminator"] == (heads == "judged")
    before = path.stat().st_mtime_ns
    assert main(words) == 0 and path.stat().st_mtime_ns == before
    assert main([*words, "--print"]) == 0
    row = f"| {acceleration_results.HEADS[heads]} | 0.9 | 1 | {cell['calls']:.1f} | {cell['policy']['rmse']:.4f} |"
    assert row in capsys.readouterr().out


def test_seeds_are_one_row_of_the_page() -> None:
    def cell(seed: int, calls: float, rmse: float, needed: float | None) -> dict[str, Any]:
        job = {"model": "digits", "heads": "both", "calls": 24, "seed": seed, "decay": 0.9}
        beside = {name: {"rmse": rmse + 0.01, "sure": 0.5} for name in acceleration_results.STATIC}
        return {
            "job": job, "calls": calls, "policy": {"rmse": rmse, "sure": 0.75}, "plain": {"rmse": 0.01, "sure": 1.0},
            "beside": beside, "as good": {"fewer plain steps": 20.0, "one mask": 16.0, "GITS": needed},
            "calls by kind": {"0": calls - 1, "7": calls + 1}, "attention": 0.02, "environment": {},
        }  # fmt: skip

    table = {"job": {"model": "digits", "heads": "table"}, "calls": 5, "table": {"rmse": 0.0210}}
    contents = {"a": cell(0, 12.0, 0.02, 14.0), "b": cell(1, 14.0, 0.04, None), "t": table}
    shown = acceleration_results.table(contents, "digits")
    row = "| both | 0.9 | 2 | 13.0 (12.0 to 14.0) | 0.0300 (0.0200 to 0.0400) | 0.0400 (20.0) | 0.0400 (16.0) "
    assert f"{row}| 0.0400 (> 24) | +13 (+12 to +14) % |" in shown and "Learned tables: 0.0210 with 5 calls." in shown
    assert "Attention is 2 % of a call's products" in shown
    shown = acceleration_results.judges(contents, "digits")
    assert "| both | 0.9 | 0.750 | 1.000 | 0.500 | 0.500 | 0.500 | 12.00 (0) to 14.00 (7) |" in shown
    assert acceleration_results.table(contents, "shapes") == acceleration_results.judges(contents, "shapes") == MISSING


def test_judges_know_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "SAMPLES", 4)
    monkeypatch.setattr(worlds, "TOLERANCE", 0.05)
    judge = DigitsJudge()
    (fine,) = judge.solved(judge.sigmas(300))
    nothing = Rollout(judge.task.model, judge.draws, fine.prompts, torch.zeros_like(fine.states))
    assert judge.told([nothing])["rmse"] == pytest.approx(float(fine.states.square().mean().sqrt()), rel=0.02)
    many = judge.told(judge.solved(judge.sigmas(40)))
    assert many["rmse"] < judge.told(judge.solved(judge.sigmas(8)))["rmse"] < 0.5 and many["sure"] > 0.5


def test_a_learned_table_is_measured_on_the_samples_of_the_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "SAMPLES", 4)
    monkeypatch.setattr(worlds, "TOLERANCE", 0.05)
    cell = table_cell(Job("digits", "table", 5, 0, 1.0), Path())
    judge = DigitsJudge()
    assert cell["calls"] == 5 and cell["table"]["rmse"] < judge.told(judge.solved(judge.sigmas(10)))["rmse"]


def test_classes_of_the_larger_network_are_learned_from_by_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "SAMPLES", 24)
    judge = Shapes32Judge()
    assert judge.task.texts(judge.draws.conditions) == learning("shapes-32")[1]["texts"](judge.draws.conditions)
    assert {*judge.task.texts(judge.draws.conditions)} == {*shapes_32.classes()}
    assert [*judge.kinds].count("one thing") == 12
    pictures = shapes_32.paint([0, 13], torch.Generator().manual_seed(0))
    states, prompts = (pictures * 2 - 1) * shapes_32.SCALE, [shapes_32.classes()[n] for n in (0, 13)]
    told = judge.verified([Rollout(judge.task.model, judge.draws[:2], prompts, states)])
    assert told["all"] == 1 and told["graded"] > 0.95
    assert WORLDS["shapes-32"].features(pictures).shape == (2, 192)


def test_prompts_of_one_and_of_two_things_are_judged_in_turn_and_learned_from_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worlds, "SAMPLES", 6)
    texts, ones, twos = shapes_prompts()
    assert ShapesJudge().kinds == ("one thing", "two things") * 3
    _, told = learning("shapes")
    assert not set(twos) & set(told["train"]) and set(twos) <= set(told["held_out"])
    share = sum(number in ones for number in told["train"]) / len(told["train"])
    assert share == pytest.approx(0.5, abs=0.02)
    assert told["texts"](ones[:1]) == [texts[ones[0]]]


def test_who_computes_is_drawn(tmp_path: Path) -> None:
    report = {"who computes": [{"prompt": "a red square", "steps": "1011"}, {"prompt": "", "steps": "1000"}]}
    assert draw_decisions(report, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
