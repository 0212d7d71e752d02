"""The dry run: what it says of memory is what a run needs, and it keeps to the row limit itself."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import pytest
from helpers.counting import counting
from helpers.toy_models import toy_config

from epd.denoisers.live_memory import LiveMemory
from epd.denoisers.rows import limit_rows
from epd.distill.cost import Cost, estimate, working_bytes
from epd.distill.plan import make_plan
from epd.distill.run import run_distill
from epd.distill.train import distill

FACTOR = 1.5  # of what is measured; the estimate was 2.6 times too low


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("objective", ["end", "steps"])
def test_what_is_kept_between_updates_is_what_the_dry_run_says(objective: str) -> None:
    model = counting((1, 16, 16))
    config = toy_config(family="epd", calls=5, optimizer="adam", objective=objective, pool=96, validation=48, batch=16,
                        accumulate=1, iterations=2, screening=1, teacher="euler", validate_every=2)  # fmt: skip
    plan = make_plan(model, config)
    cost = estimate(model, plan)
    gc.collect()
    with LiveMemory() as memory:
        updates = distill(model, plan)
        last = next(updates)
        gc.collect()
        kept = memory.now
    assert last.iteration == 1
    assert 1 / FACTOR < kept / cost.pool_memory < FACTOR
    states = 1 if objective == "end" else plan.tables[0].num_steps
    assert cost.pool_memory == (96 + 48) * (1 + states) * 256 * 8


@pytest.mark.parametrize("changes", [{"calls": 4, "step_calls": 1, "memory": 2}, {"family": "s4s"}])
def test_what_lives_while_gauss_newton_works_is_what_the_dry_run_says(changes: dict[str, object]) -> None:
    """The network keeps nothing here, so that all that lives is the method's own."""
    model = counting((1, 64, 64), plain=True)
    config = toy_config(pool=32, validation=8, batch=32, accumulate=2, iterations=1, screening=1, teacher="euler",
                        dtype="float32", schedule="polynomial", **changes)  # fmt: skip
    plan = make_plan(model, config)
    cost = estimate(model, plan)
    list(distill(model, plan))  # the teacher is cached: its solve is not what is measured
    gc.collect()
    with LiveMemory() as memory:
        list(distill(model, plan))
    assert 1 / FACTOR < memory.peak / (cost.memory + cost.pool_memory) < FACTOR


@pytest.mark.parametrize("teacher", ["exact", "heun"])
@pytest.mark.parametrize("objective", ["end", "steps"])
def test_what_lives_while_the_teacher_works_is_what_the_dry_run_says(teacher: str, objective: str) -> None:
    """A block of 40 samples, and hardly anything to learn from it."""
    model = counting((1, 64, 64), plain=True)
    config = toy_config(family="epd", calls=8, optimizer="adam", objective=objective, teacher=teacher, pool=40, batch=1,
                        accumulate=1, validation=1, iterations=1, schedule="polynomial", dtype="float32",
                        teacher_tolerance=1e-2)  # fmt: skip
    plan = make_plan(model, config)
    cost = estimate(model, plan)
    with LiveMemory() as memory:
        next(distill(model, plan))
    assert 1 / FACTOR < memory.peak / cost.memory < FACTOR


def test_gauss_newtons_memory_does_not_grow_with_batch_or_pool() -> None:
    model = counting((1, 512, 512), plain=True)
    small, large = (
        working_bytes(limit_rows(model), make_plan(model, toy_config(batch=n, pool=n, accumulate=2))) for n in (32, 512)
    )
    assert small == large


@pytest.mark.parametrize(
    ("optimizer", "limit", "timed"),
    [("adam", 1, 1), ("adam", 3, 3), ("adam", 10, 4), ("gauss-newton", 1, 1), ("gauss-newton", 10, 10)],
)
def test_a_dry_run_keeps_to_the_row_limit(
    optimizer: str, limit: int, timed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It times calls as training makes them: with Adam and 10 rows, fans of 2 points for 2 samples of 5 rows each."""
    model, out = counting(), tmp_path / "run"
    assert run_distill(limit_rows(model, limit), toy_config(optimizer=optimizer), out, dry_run=True) is None
    assert model.calls[-4:] == [timed] * 4 and max(model.calls) <= limit  # before them, Adam's gradients are proven
    text = capsys.readouterr().out
    assert f"at most {limit} in one network call" in text
    assert "in main memory" in text and "beside the network and its activations" in text


def test_a_dry_run_of_a_large_sample_makes_small_calls() -> None:
    """256 rows of 2^18 numbers were 268 MB for the states alone; 2^22 numbers a call are 16 rows."""
    model = counting((1, 512, 512), plain=True)
    cost = estimate(model, make_plan(model, toy_config(batch=512, pool=512, accumulate=1)))
    assert model.calls[-4:] == [2] * 4 and max(model.calls) == 2 and cost.rows == 16


def test_every_number_of_a_cost_is_written_out() -> None:
    cost = Cost(3, 1000, 2000, 90.0, 2**20, 2**21, 4)
    words = {field.name: cost.text(field.name) for field in dataclasses.fields(cost)}
    assert words["pool_memory"] == "about 1.0 MiB in main memory"
    assert words["memory"] == "about 2.0 MiB beside the network and its activations"
    assert words["rows"] == "at most 4 in one network call" and words["training_evaluations"] == "1,000"
    assert words["seconds"].startswith("about 90 s here (1.5 min)")
