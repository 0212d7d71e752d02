"""The benchmark of policies goes on where it was, and says what it measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from epd.experiments import bench_acceleration as bench
from epd.experiments.bench_acceleration import Judge, between, jobs, main


def test_filters_choose_cells() -> None:
    assert len(jobs()) == 3 * (3 + 3)
    assert {job.decay for job in jobs(["digits,both,,0"])} == {0.97, 0.9, 0.8}
    assert [job.name for job in jobs(["digits,tpdm,24,1"])] == ["digits-tpdm-24-0.9-1"]


def test_what_is_static_is_measured_between_whole_numbers_of_steps() -> None:
    class Fake:
        def solved(self, sigmas: int) -> int:
            return sigmas

        def told(self, states: int) -> dict[str, float]:
            return {"rmse": 1.0 / states}

    fake: Any = Fake()
    assert between(fake, lambda n: n, 4.5, 8)["rmse"] == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert between(fake, lambda n: n, 8.0, 8)["rmse"] == 1 / 8


@pytest.mark.slow
def test_a_cell_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"steps": 1, "groups": 1, "group_size": 4, "held_out": 64, "tolerance": 0.1, "epochs": 1}
    monkeypatch.setattr(bench, "LEARNING", {**bench.LEARNING, **small})
    monkeypatch.setattr(bench, "GRID", 4)
    monkeypatch.setattr(bench, "SAMPLES", 10)
    monkeypatch.setattr(bench, "TOLERANCE", 0.1)
    monkeypatch.setattr(bench, "TEACHER", {"samples": 2, "fine": 6})
    words = ["--only", "digits,tpdm,,0", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    tmp_path.joinpath("work").mkdir()
    assert main(words) == 0
    (path,) = tmp_path.glob("*.json")
    cell = json.loads(path.read_text())
    assert cell["policy"]["rmse"] > 0 and set(cell["beside"]) == {"fewer plain steps", "one mask", "GITS"}
    assert cell["calls"] == pytest.approx(sum(cell["computed in each step"]))
    if cell["calls"] == 4:  # all is computed: so it is by the mask of all steps
        assert cell["policy"] == cell["plain"] == cell["beside"]["one mask"]
    before = path.stat().st_mtime_ns
    assert main(words) == 0 and path.stat().st_mtime_ns == before
    assert main([*words, "--print"]) == 0
    assert "| tpdm | 0.9 | 0 |" in capsys.readouterr().out


def test_the_judge_knows_the_end() -> None:
    judge = Judge.__new__(Judge)
    judge.seeds, judge.ends = [3], torch.zeros(1, 1, 8, 8)
    judge.classifier = bench.digits_classifier()
    assert judge.told(torch.full((1, 1, 8, 8), 2.0))["rmse"] == 2.0
