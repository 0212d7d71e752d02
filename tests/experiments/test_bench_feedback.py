"""The benchmark of feedback: what is committed holds what is claimed, and processor seconds are counted over runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from epd.experiments.bench_feedback import CONFIG, RESULTS, OutOfTime, bounded, spent_in


def test_the_committed_result_beats_plain_steps_of_as_many_blocks_and_says_what_beats_it() -> None:
    content = json.loads(RESULTS.read_text())
    cells = content["cells"]
    assert {name: content["config"][name] for name in CONFIG} == CONFIG
    assert content["training processor seconds"] <= 600
    assert cells["ILF 4"]["cost"] == cells["euler 6"]["cost"] == content["equal blocks"] == 6
    assert content["ratio to Euler"] == cells["ILF 4"]["rmse"] / cells["euler 6"]["rmse"] <= 0.75
    assert cells["ipndm3 6"]["rmse"] < cells["ILF 4"]["rmse"]  # docs/accelerate.md says so


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def test_processor_seconds_are_bounded_over_several_runs(tmp_path: Path) -> None:
    kept = tmp_path / "seconds.json"
    with bounded(0.5, kept):
        work(0.1)
    assert 0.1 <= spent_in(kept) < 0.5
    with pytest.raises(OutOfTime, match="0.5 processor seconds"), bounded(0.5, kept):
        work(10)
    assert 0.4 < spent_in(kept) < 5
    with bounded(20, kept):
        work(0.01)
