"""What was measured of tables learned with an accelerator on is complete, and is what the page says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from epd.accelerators.names import parse
from epd.experiments import bench_together, learned_results, together_results
from epd.experiments.bench_together import EQUAL, KINDS, MODEL, Job, cell_of, jobs
from epd.solvers.table_json import loads

CELLS = learned_results.contents(together_results.FOLDER)
MADE = [job for job in jobs() if job.path(together_results.FOLDER).exists()]


def test_every_cell_has_a_file_of_its_own_and_an_accelerator_that_commands_know() -> None:
    every = jobs()
    assert len({job.path(Path("x")) for job in every}) == len(every)
    for job in every:
        if job.kind not in (bench_together.TIMES, bench_together.FEEDBACK) and job.accelerated(Path()):
            parse(job.accelerated(Path()))
    assert {job.kind for job in jobs([f"{MODEL},ras-fan"])} == {"ras-fan"}
    with pytest.raises(ValueError, match="no cell is 'digits'"):
        jobs(["digits"])


def test_what_was_measured_with_an_accelerator_was_learned_with_it() -> None:
    learned = [job for job in MADE if job.base in KINDS]
    assert learned
    for job in learned:
        cell = CELLS[job.path(together_results.FOLDER).relative_to(together_results.FOLDER).as_posix()]
        table, how = loads(json.dumps(cell["table"])), KINDS[job.base][1]
        assert cell["accelerated"] == how and table.digest == cell["digest"] == cell["judged"]["digest"]
        known = [] if not how or job.kind.endswith("-later") else [how.split(":")[0]]
        assert [accelerator["name"] for accelerator in table.provenance.accelerators] == known
        assert table.depth == job.calls


def test_equal_costs_are_equal() -> None:
    """As static plans say; those of block caches are decided as it goes."""
    for kind, cost in (("plain", 6), ("ras", 6), ("ras-fan", 7), ("two-call", 9)):
        cell = CELLS[f"{MODEL}/{kind}-{EQUAL.get(kind, 6)}-0.json"]
        assert cell["cost"] == pytest.approx(cost, abs=0.01)


def test_a_measured_cell_is_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_together, "learned", lambda *_: pytest.fail("it is there"))
    job = Job(MODEL, "plain", EQUAL["plain"])
    assert cell_of(job, together_results.FOLDER, tmp_path)["digest"] == cell_of(
        Job(MODEL, "ras-later", EQUAL["plain"]), together_results.FOLDER, tmp_path
    )["digest"]  # post hoc: the same table


def test_rows_are_medians_over_training_seeds() -> None:
    cell = {**CELLS[f"{MODEL}/ras-9-0.json"], "cost": 6.0}
    cells = {f"{seed}": {**cell, "errors": [error, error]} for seed, error in enumerate((0.3, 0.1, 0.2))}
    timed = {"t": {"names": ["0"], "times": [7.5]}}
    (row,) = together_results.rows({**cells, **timed})
    assert (row["solver"], row["accelerator"]) == ("learned, `dense`", "half of the tokens")
    assert row["errors"] == pytest.approx([0.1, 0.2, 0.3]) and row["seconds"] == 7.5
    assert together_results.rmse({"errors": [3.0, 4.0]}) == math.sqrt(12.5)
