"""Tuning: which structures are learned, which one is chosen, and that a stopped search goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.toy_models import toy_mixture

from epd import Table
from epd.distill.config import DistillConfig
from epd.distill.initial import initial_table
from epd.evaluation import latency, tune
from epd.evaluation.tune_config import TuneConfig
from epd.evaluation.tuned import Tried
from epd.solvers import auto, rules
from epd.solvers.walk import plan

# KDPM2 wraps a tensor in numpy in a way that numpy 2 calls old; the warning is raised in numpy's own module.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
Cost = Callable[[int, int], float]


def by_rows(calls: int, points: int) -> float:
    """Milliseconds where every row costs as much, as on this CPU."""
    return 10.0 * calls * points


def by_calls(calls: int, points: int) -> float:
    """Where a call of a few rows costs as much as one, as on a GPU that is not full."""
    return 10.0 * calls * (1 + 0.02 * points)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with a cost of its own, on which learning takes no time and more calls and points help a little."""
    seen = SimpleNamespace(cost=by_rows, learned=[], smaller=[], timed=0)

    def latencies(
        model: object, solvers: Sequence[tuple[object, torch.Tensor]], batch: int, dtype: object
    ) -> list[float]:
        seen.timed += 1
        counted = []
        for rule, sigmas in solvers:
            rows = [len(ask.points) for step in plan(rule, sigmas) for ask in step]  # type: ignore[arg-type]
            counted.append(seen.cost(len(rows), max(rows)))
        return counted

    def run_distill(
        model: object, config: DistillConfig, out: Path, resume: bool, conditions: object, smaller: Sequence[Table]
    ) -> Path:
        table = initial_table(config.model_copy(update={"schedule": "polynomial"}), toy_mixture())
        error = 1 / (config.calls * (1 + 0.1 * int(config.points)))
        provenance = replace(table.provenance, metrics={"validation_rmse": error})
        seen.learned.append((config.calls, config.points, config.minutes))
        seen.smaller.append({(t.depth, t.num_parallel) for t in smaller})
        out.mkdir(parents=True, exist_ok=True)
        replace(table, provenance=provenance).save(out / "solver.json")
        return out / "solver.json"

    monkeypatch.setattr(tune, "latencies", latencies)
    monkeypatch.setattr(tune, "run_distill", run_distill)
    return seen


def tuned(out: Path, **budget: object) -> tune.Tuned:
    return tune.tune(toy_mixture(), TuneConfig.model_validate({"samples": 8, "points": (1, 2, 4), **budget}), out)


@pytest.mark.parametrize("milliseconds", [20, 55, 60, 119])
def test_where_rows_are_what_costs_one_point_a_call_is_learned(
    search: SimpleNamespace, tmp_path: Path, milliseconds: int
) -> None:
    found = tuned(tmp_path, latency_ms=milliseconds)
    assert [learned[:2] for learned in search.learned] == [(milliseconds // 10, 1)]
    assert (found.table.depth, found.table.nfe) == (milliseconds // 10,) * 2
    assert found.latency_ms == by_rows(found.table.depth, 1) <= milliseconds
    assert found.handmade_calls == found.table.depth
    # Every structure that fits was timed to the most calls that do, as counting them one by one finds.
    most = {k: max((c for c in range(2, 17) if by_rows(c, k) <= milliseconds), default=0) for k in (1, 2, 4)}
    assert {t.points: t.calls for t in found.tried} == {k: c for k, c in most.items() if c}
    assert [t.rmse is None for t in found.tried] == [t.points > 1 for t in found.tried]


def test_where_calls_are_what_costs_more_points_are_learned(search: SimpleNamespace, tmp_path: Path) -> None:
    search.cost = by_calls
    found = tuned(tmp_path, latency_ms=53, minutes=6)
    # Each has more of one, calls or evaluations; one point a call is learned fastest.
    assert search.learned == [(5, 1, 2.0), (5, 2, 2.0), (4, 4, 2.0)]
    assert found.table.depth == 5


def test_a_budget_of_calls_takes_points_that_cost_little(search: SimpleNamespace, tmp_path: Path) -> None:
    search.cost = lambda calls, points: calls * (12 + points)
    found = tuned(tmp_path, calls=4, points=(4, 1, 2))
    assert [learned[:2] for learned in search.learned] == [(4, 1), (4, 4)]
    assert search.smaller == [set(), {(4, 1)}]  # a start of the larger one
    assert {t.points for t in found.tried} == {1, 2, 4}
    assert found.table.num_parallel == 4 and found.handmade_calls == 4
    assert {cell.asked for cell in found.comparison.cells if not cell.learned} >= {4}


def test_a_quality_is_reached_by_the_fastest_structure(search: SimpleNamespace, tmp_path: Path) -> None:
    found = tuned(tmp_path, quality=0.2, points=(1, 2))
    assert found.tried[-1] == Tried(5, 1, 50.0, 1 / (5 * 1.1))
    assert [learned[0] * learned[1] for learned in search.learned] == sorted(c * k for c, k, _ in search.learned)
    with pytest.raises(ValueError, match="quality = 0.01 was not reached: 16-calls-2-points came to 0.05208"):
        tuned(tmp_path / "other", quality=0.01, points=(1, 2))
    starts = {learned[:2]: smaller for learned, smaller in zip(search.learned, search.smaller, strict=True)}
    assert starts[2, 1] == set() and starts[5, 1] == {(4, 1)}
    assert starts[9, 2] == {(9, 1)} and starts[10, 2] == {(9, 2), (10, 1)}  # none that another of them beats


def test_what_does_not_fit_names_the_least(search: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latency_ms = 19: 2 calls of 1 points take 20 ms here; give as much or more"):
        tuned(tmp_path, latency_ms=19)


def test_a_search_goes_on_with_what_was_timed_then(search: SimpleNamespace, tmp_path: Path) -> None:
    first = tuned(tmp_path, latency_ms=40)
    search.cost = lambda calls, points: 1.5 * by_rows(calls, points)
    again = tuned(tmp_path, latency_ms=40)
    assert again.tried == first.tried and again.table == first.table
    content = json.loads((tmp_path / "tune.json").read_text())
    assert content["digest"] == Table.load(tmp_path / "solver.json").digest == first.table.digest
    assert content["verdict"] in (tmp_path / "tune.md").read_text()
    with pytest.raises(ValueError, match="holds the result of another budget or model"):
        tuned(tmp_path, latency_ms=41)


@pytest.mark.parametrize(
    ("budget", "message"),
    [({}, "budget: missing"), ({"calls": 3, "quality": 0.1}, "budget: calls and quality"),
     ({"calls": 3, "points": ()}, "points = "), ({"calls": 3, "points": (0, 1)}, "numbers from 1 to 16")],
)  # fmt: skip
def test_a_budget_is_one_of_three(budget: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuneConfig.model_validate(budget)


def test_latencies_are_those_of_whole_samplers_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def solve(rule: object, denoiser: object, noise: torch.Tensor, sigmas: torch.Tensor, check: bool) -> torch.Tensor:
        order.append(len(sigmas))
        clock[0] += len(sigmas) * (100 if len(order) < 3 else 1)  # the first run of each is slow
        return noise

    monkeypatch.setattr(latency, "solve", solve)
    monkeypatch.setattr(auto.time, "perf_counter", lambda: clock[0])
    solvers = [(rules.euler(), torch.tensor([3.0, 2.0, 1.0])), (rules.euler(), torch.tensor([3.0, 1.0]))]
    assert latency.latencies(toy_mixture(), solvers, 2, torch.float64) == [3000.0, 2000.0]
    assert order == [3, 2] * (1 + latency.REPEATS)
