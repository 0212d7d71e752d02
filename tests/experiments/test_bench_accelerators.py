"""What was measured of accelerators holds what is claimed of them, and is what is measured again."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from epd.experiments import bench_accelerators
from epd.experiments.bench_accelerators import DRAWS, FAN, RESULTS, ROWS, Judge, Row, bench, printed, rmse

CONTENT = json.loads(RESULTS.read_text())


def measured(solver: str, steps: int, accelerator: str = "") -> tuple[float, float]:
    row = CONTENT["rows"][Row(solver, steps, accelerator).key]
    return rmse(row), row["cost"]


@pytest.mark.parametrize("steps", [5, 6])
def test_half_fans_keep_the_quality_of_whole_ones_and_random_tokens_do_not(steps: int) -> None:
    dense, cost = measured("dpm2", steps)
    half, less = measured("dpm2", steps, FAN)
    assert cost == 2 * steps and less == 1.5 * steps + 0.5
    assert less <= 0.80 * cost
    assert half <= 1.03 * dense
    random = [measured("dpm2", steps, f"{FAN},score=random,seed={i}")[0] for i in range(DRAWS)]
    assert half <= 0.85 * statistics.fmean(random) and half < min(random)


def test_the_record_is_complete_and_says_what_is_lost() -> None:
    assert set(CONTENT["rows"]) == {row.key for row in ROWS}
    table = printed(CONTENT)
    assert table.count("\n| ") == len(ROWS) + 1
    half, cost = measured("dpm2", 5, FAN)
    for solver, steps in (("ipndm2", 8), ("ipndm3", 8), ("learned", 7)):  # without an accelerator, at no more cost
        error, plain = measured(solver, steps)
        assert plain <= cost and error < half


def test_the_documentation_has_these_numbers() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "accelerate.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    table = [cell.strip(" *") for line in lines for cell in line.strip("|").split("|")]
    said = list(zip(table[::3], table[1::3], table[2::3], strict=True))
    for name, solver, steps, accelerator in (
        ("DPM-Solver-2, 4 steps", "dpm2", 4, ""), ("DPM-Solver-2, 5 steps", "dpm2", 5, ""),
        ("DPM-Solver-2, 6 steps", "dpm2", 6, ""), ("... half fan", "dpm2", 5, FAN), ("... half fan", "dpm2", 6, FAN),
        ("iPNDM-2, 8 steps", "ipndm2", 8, ""), ("iPNDM-3, 10 steps", "ipndm3", 10, ""),
        ("Euler, 10 steps", "euler", 10, ""),
        ("learned, 7 calls", "learned", 7, ""), ("learned, 9 calls", "learned", 9, ""),
    ):  # fmt: skip
        error, cost = measured(solver, steps, accelerator)
        assert (name, f"{cost:g}", f"{error:.3f}".lstrip("0")) in said
    for steps, cost in ((5, "8"), (6, "9.5")):
        random = statistics.fmean(measured("dpm2", steps, f"{FAN},score=random,seed={i}")[0] for i in range(DRAWS))
        assert ("... half fan, random tokens (mean of 3)", cost, f"{random:.3f}".lstrip("0")) in said


def test_a_measurement_again_and_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row("dpm2", 5, FAN), Row("euler", 8)]
    again = Judge(range(2), reference=60).measured(rows[0])
    recorded = CONTENT["rows"][rows[0].key]
    assert again["cost"] == recorded["cost"]
    assert again["errors"] == pytest.approx(recorded["errors"][:2], rel=0.02)
    made: list[Row] = []

    class Counting:
        def __init__(self, seeds: range) -> None:
            assert len(seeds) == bench_accelerators.SEEDS

        def measured(self, row: Row) -> dict[str, object]:
            made.append(row)
            return recorded

    monkeypatch.setattr(bench_accelerators, "Judge", Counting)
    bench(tmp_path / "out.json", rows[:1])
    content = bench(tmp_path / "out.json", rows)
    assert made == rows and set(content["rows"]) == {row.key for row in rows}
    assert bench(tmp_path / "out.json", rows) == content and made == rows
    assert printed({}).startswith("*Not measured")
