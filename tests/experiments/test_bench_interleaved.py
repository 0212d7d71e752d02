"""A short version of the interleaved runs, and what they are able to find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epd.experiments import bench_interleaved
from epd.experiments.bench_interleaved import LEARNED, interleave


@pytest.mark.parametrize("tables", [LEARNED, (LEARNED[0], None)], ids=["two learned", "a stock one beside"])
def test_interleaved_runs_on_one_network_make_the_undisturbed_pictures(tables: tuple[str | None, ...]) -> None:
    row = interleave(tables, 10, seed=1)
    assert row["runs"] == 20
    assert 5 <= row["interrupted"] < 20
    assert row["changes_of_thread"] > 20
    assert (row["wrong"], row["hooks_left"]) == (0, 0)


def test_the_recorded_runs_are_all_right() -> None:
    rows = json.loads(Path(bench_interleaved.RESULTS).read_text())["rows"].values()
    assert sum(row["runs"] for row in rows) == 200
    assert all(row["wrong"] == row["hooks_left"] == 0 for row in rows)
    assert all(row["changes_of_thread"] > row["runs"] for row in rows)
