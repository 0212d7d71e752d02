"""More calls or points are never worse: a learned table of fewer is a start of the next one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tables import epd_table, full_table
from helpers.toy_models import toy_config, toy_mixture

import epd
from epd.denoisers.noise import unit_noise
from epd.distill.growth import grown, widened
from epd.distill.initial import initial_table
from epd.distill.plan import make_plan
from epd.distill.run import run_distill
from epd.distill.several import run_each, run_points

NOISE = unit_noise(range(8), (1, 2, 2), torch.float64)


def end(table: epd.Table) -> torch.Tensor:
    return epd.solve(table.rule(), toy_mixture(), NOISE, table.sigmas)


def start(**changes: object) -> epd.Table:
    return initial_table(toy_config(**changes), toy_mixture())


@pytest.mark.parametrize("calls", [4, 5, 8])
@pytest.mark.parametrize(
    "changes",
    [{"family": "dense", "points": 1}, {"family": "dense", "points": 3}, {"family": "s4s"}, {"afs": True}, {}],
    ids=["dense", "dense fan", "s4s", "two-call with AFS", "two-call"],
)
def test_a_grown_table_leads_to_the_same_ends(changes: dict[str, object], calls: int) -> None:
    small = start(calls=3, **changes)
    large = grown(small, calls)
    assert large.depth == calls and large.provenance.parent == small.digest
    torch.testing.assert_close(end(large), end(small), rtol=1e-9, atol=1e-9)
    assert bool((np.diff(large.sigmas) < 0).all())


def test_a_grown_table_has_its_familys_structure() -> None:
    for points in (1, 2):
        large = grown(start(family="dense", calls=3, points=points), 5)
        fresh = start(family="dense", calls=5, points=points)
        assert large.calls == fresh.calls and large.memory.shape == fresh.memory.shape
        assert large.nodes.shape == fresh.nodes.shape


TABLES = {
    "dense": lambda: start(family="dense", calls=4, points=1),
    "dense fan": lambda: start(family="dense", calls=4, points=2),
    "two-call": lambda: start(calls=3, points=1),
    "everything": lambda: full_table(),
    "one call": lambda: full_table(1, afs=True),
    "one call, asked first": lambda: full_table(1, free=True),
    "both": lambda: full_table([2, 1, 1, 2]),
    "scaled": lambda: epd_table(),
    "plugin": lambda: epd_table(order=3),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("more", [1, 2])
def test_a_widened_table_leads_to_the_same_ends_and_evaluates_its_new_points(name: str, more: int) -> None:
    small = TABLES[name]()
    wide = widened(small, small.num_nodes + more)
    assert wide.num_nodes == small.num_nodes + more and wide.provenance.parent == small.digest
    assert wide.num_parallel == small.num_parallel + more and wide.depth == small.depth
    assert wide.nodes[:, : small.num_nodes].tolist() == small.nodes.tolist()
    torch.testing.assert_close(end(wide), end(small), rtol=1e-9, atol=1e-9)
    if more == 2:  # one by one is as good as at once, but for where the new points lie
        torch.testing.assert_close(end(widened(widened(small, small.num_nodes + 1), wide.num_nodes)), end(wide))


def test_a_widened_table_has_its_familys_structure() -> None:
    wide, fresh = widened(start(family="dense", calls=5, points=1), 1), start(family="dense", calls=5, points=2)
    assert wide.calls == fresh.calls and wide.memory.shape == fresh.memory.shape
    assert wide.lookahead is not None and fresh.lookahead is not None
    assert wide.lookahead.tolist() == fresh.lookahead.tolist()
    assert [u.lookahead for u in wide.used] == [u.lookahead for u in fresh.used]


def test_what_cannot_be_widened_says_why() -> None:
    with pytest.raises(ValueError, match="1 points a step, but the table has 2 already"):
        widened(start(points=2), 1)
    with pytest.raises(ValueError, match="no step can have more points: those of one call lie along earlier slopes"):
        widened(start(family="dense", calls=3, points=1, memory=0, afs=False), 1)


@pytest.mark.parametrize("optimizer", ["soap", "gauss-newton"])
def test_more_points_are_never_worse_on_held_out_noise(cache: Path, tmp_path: Path, optimizer: str) -> None:
    config = toy_config(family="dense", optimizer=optimizer, iterations=3, screening=2, lr=0.3)
    paths = run_points(toy_mixture(), config, (2, 3), (2, 1, 3), tmp_path)
    assert [path.relative_to(tmp_path).parts[:2] for path in paths] == [
        (f"{k}-points", f"{n}-calls") for k in (1, 2, 3) for n in (2, 3)
    ]
    errors = np.reshape([epd.Table.load(path).provenance.metrics["validation_rmse"] for path in paths], (3, 2))
    assert (np.diff(errors, axis=0) <= 1e-9).all() and (np.diff(errors, axis=1) <= 1e-9).all(), errors


def test_what_cannot_be_grown_says_why() -> None:
    small = start(family="dense", calls=3, points=1)
    with pytest.raises(ValueError, match="calls = 3, but the table makes 3 already: give more, or another table"):
        grown(small, 3)
    with pytest.raises(ValueError, match="no step of the table can be split: .* remembers 0"):
        grown(start(family="epd", calls=4, schedule="polynomial"), 6)


def test_a_table_of_fewer_calls_is_grown_where_training_starts(caplog: pytest.LogCaptureFixture) -> None:
    small, config = start(family="dense", calls=3, points=1), toy_config(family="dense", calls=4, points=1)
    assert torch.allclose(end(make_plan(toy_mixture(), config, init=small).tables[0]), end(small))
    with pytest.raises(ValueError, match="the initial table makes 3 sequential calls, calls = 2: give as many or more"):
        make_plan(toy_mixture(), config.model_copy(update={"calls": 2}), init=small)
    alone = make_plan(toy_mixture(), config)
    plan = make_plan(toy_mixture(), config, smaller=[small])
    assert plan.tables[1:] == alone.tables and plan.tables[0].provenance.parent == small.digest
    caplog.set_level(logging.INFO, "epd")
    epd_config = toy_config(family="epd", calls=6, schedule="polynomial")
    plan = make_plan(toy_mixture(), epd_config, smaller=[start(family="epd", calls=4, schedule="polynomial")])
    assert len(plan.tables) == 1 and "the table of 4 calls is no start for 6" in caplog.text


@pytest.mark.parametrize("optimizer", ["soap", "gauss-newton"])
def test_more_calls_are_never_worse_on_held_out_noise(cache: Path, optimizer: str) -> None:
    """Though the updates are too few and too long to find anything by themselves."""
    config = toy_config(family="dense", points=1, optimizer=optimizer, iterations=3, screening=2, lr=0.3)
    tables = epd.distill_each(toy_mixture(), (2, 3, 5), config)
    errors = [tables[n].provenance.metrics["validation_rmse"] for n in (2, 3, 5)]
    assert [tables[n].depth for n in tables] == [2, 3, 5]
    assert errors[1] <= errors[0] * (1 + 1e-9) and errors[2] <= errors[1] * (1 + 1e-9), errors


def test_runs_of_several_counts_share_a_folder_and_are_resumed(cache: Path, tmp_path: Path) -> None:
    config = toy_config(family="dense", points=1, optimizer="soap", iterations=3, minutes=None)
    paths = run_each(toy_mixture(), config, (3, 2), tmp_path)
    assert list(paths) == [2, 3] and paths[3] == tmp_path / "3-calls" / "solver.json"
    before = {n: path.read_bytes() for n, path in paths.items()}
    paths[3].unlink()
    assert run_each(toy_mixture(), config, (2, 3), tmp_path, resume=True) == paths
    assert {n: path.read_bytes() for n, path in paths.items()} == before
    held = epd.distill_each(toy_mixture(), [2, 3], config, tmp_path, resume=True)
    assert {n: table.digest for n, table in held.items()} == {n: epd.Table.load(p).digest for n, p in paths.items()}


def test_counts_that_are_none(cache: Path) -> None:
    for counts in ((), (0, 3)):
        with pytest.raises(ValueError, match=r"calls = \[.*\] must be numbers from 1 on, such as"):
            epd.distill_each(toy_mixture(), counts, toy_config())


def test_a_resumed_run_keeps_the_points_that_were_measured(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from epd.distill import points

    config = toy_config(family="dense", optimizer="soap", iterations=3)
    ratios = iter([1.1])  # a second point is nearly free; it is measured once
    monkeypatch.setattr(points, "_ratio", lambda *args: next(ratios))
    path = run_distill(toy_mixture(), config, tmp_path / "run")
    assert path is not None and epd.Table.load(path).num_parallel == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["points"] == 2
    assert run_distill(toy_mixture(), config, tmp_path / "run", resume=True) == path
