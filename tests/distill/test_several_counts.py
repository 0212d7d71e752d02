"""Several counts of calls in one run: one structure, one teacher, never worse; and what is asked for in vain."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import epd
from epd.distill import bends, points, soap, starts
from epd.distill.families import FAMILIES
from epd.distill.plan import make_plan
from epd.distill.run import run_distill
from epd.distill.several import run_each, run_points
from epd.distill.starts import start_sigmas
from epd.distill.train import Trainer, distill
from epd.runs.folder import identity_of
from epd.runs.processes import Workers

DENSE = {"family": "dense", "iterations": 2, "screening": 1}


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a second point is free every second time."""
    ratios = itertools.cycle([2.0, 1.0])
    monkeypatch.setattr(points, "_ratio", lambda *args: next(ratios))


@pytest.mark.usefixtures("undecided")
def test_all_counts_have_the_points_that_were_measured_once(cache: Path, tmp_path: Path) -> None:
    config = toy_config(**DENSE)
    tables = [epd.Table.load(path) for path in run_each(toy_mixture(), config, (2, 3, 4), tmp_path).values()]
    assert [(table.depth, table.nfe) for table in tables] == [(2, 2), (3, 3), (4, 4)]
    more = run_each(toy_mixture(), config, (2, 3, 5), tmp_path, resume=True)
    assert epd.Table.load(more[5]).nfe == 5 and identity_of(tmp_path / "5-calls")["config"]["points"] == 1


@pytest.mark.usefixtures("undecided")
def test_a_run_without_its_config_goes_on_with_the_points_of_its_checkpoint(cache: Path, tmp_path: Path) -> None:
    config = toy_config(**DENSE)
    path = run_each(toy_mixture(), config, (2,), tmp_path)[2]
    (path.parent / "config.json").unlink()
    assert run_each(toy_mixture(), config, (2,), tmp_path, resume=True) == {2: path}


def test_a_dry_run_shows_the_grown_start_and_counts_the_teacher_once(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_each(toy_mixture(), toy_config(**DENSE, points=1), (2, 3), tmp_path / "x", dry_run=True) == {}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    teachers = [int(line[2].replace(",", "")) for line in lines if line[:2] == ["teacher", "evaluations"]]
    counts = [int(line[1]) for line in lines if line[:1] == ["starts"]]
    assert teachers[0] > 0 == teachers[1] and counts[1] == counts[0] + 1
    assert not (tmp_path / "x").exists()


def test_a_run_never_ends_worse_than_its_first_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps far too long, and a test of significance that sees no harm in them."""
    monkeypatch.setattr(Trainer, "_worse", lambda self, state: False)
    model = toy_mixture()
    *_, learned = distill(model, make_plan(model, toy_config(**DENSE, points=1, optimizer="soap")), cache=tmp_path)
    config = toy_config(**{**DENSE, "iterations": 40}, points=1, calls=4, optimizer="soap", lr=3.0)
    plan = make_plan(model, config, smaller=[learned.table])
    trainer = Trainer(model, plan, None, tmp_path, Workers())
    untrained = trainer._validate(replace(learned.state, start=0, vector=trainer.starts[0].start))
    *_, last = trainer.updates(None)
    assert last.state.best_rmse <= untrained


def test_a_time_has_room_for_eigenbases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = toy_mixture()
    config = toy_config(**{**DENSE, "iterations": 100}, points=1, optimizer="soap", minutes=0.02)
    monkeypatch.setattr(soap, "basis_seconds", lambda size: 5.0)
    *_, last = distill(model, make_plan(model, config), cache=tmp_path)
    assert last.total <= 10


def test_a_schedule_that_does_not_reach_over_the_range_is_no_start(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "epd")
    model = epd.own_model(lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2), (1, 4, 4), 2.0, 80.0)
    plan = make_plan(model, toy_config(family="dense", calls=3))  # its points are measured within the range, too
    assert "the time_uniform schedule is no start here: sigmas must decrease" in caplog.text
    assert {table.provenance.schedule for table in plan.tables} == {"bends", "polynomial"}
    with pytest.raises(ValueError, match="sigmas must decrease"):
        make_plan(model, toy_config(family="dense", calls=3, points=1, schedule="time_uniform"))


def test_levels_that_are_one_when_rounded_keep_more_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_mixture()
    close = torch.tensor([1.0, 0.99999, 0.99998], dtype=torch.float64)
    monkeypatch.setattr(bends.Bends, "grid", lambda self, count, power: close)
    levels = start_sigmas(toy_config(family="dense"), model, 4, starts.Start(starts.BENDS, 0.5))
    assert levels.tolist() == [20.0, 1.0, 0.99999, 0.99998, 0.02]


@pytest.mark.parametrize(("path", "other"), [("ve", "flow"), ("flow", "ve")])
def test_a_table_of_another_path_is_no_start(path: str, other: str, cache: Path) -> None:
    table = make_plan(toy_mixture(path), toy_config(family="dense", points=1)).tables[0]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"learned on the path '{path}', toy is '{other}': leave init out"):
        make_plan(toy_mixture(other), toy_config(), table)  # type: ignore[arg-type]


def test_a_table_of_other_ends_keeps_them_and_a_flow_begins_at_one(caplog: pytest.LogCaptureFixture) -> None:
    plain = epd.Table([80.0, 2.0, 0.02], [[0.5]] * 2, [[1.0]] * 2)
    assert make_plan(toy_mixture(), toy_config(calls=4), plain).tables[0].sigmas[0] == 80
    assert "goes from sigma 80 to 0.02 and keeps these ends, toy was trained from 20 to 0.02" in caplog.text
    with pytest.raises(ValueError, match="starts at sigma 80, a flow at 1"):
        make_plan(toy_mixture("flow"), toy_config(calls=4), plain)


@pytest.mark.parametrize("changes", [{"memory": 0}, {"calls": 1, "afs": False}], ids=str)
def test_points_that_nothing_leads_to_are_refused(changes: dict[str, object]) -> None:
    model = toy_mixture()
    with pytest.raises(ValueError, match="points = 2 in one call look ahead along earlier slopes, of which memory = "):
        make_plan(model, toy_config(family="dense", points=2, **changes))
    assert make_plan(model, toy_config(family="dense", **changes)).config.points == 1


@pytest.mark.parametrize(
    ("changes", "calls", "message"),
    [({"family": "two-call", "afs": True}, (3, 4), "calls = 4 is even"),
     ({"points": 2, "optimizer": "soap"}, (2, 5), "'soap' takes at most 40 numbers, here are 81: use 'adam'"),
     ({"afs": False, "points": 2}, (3, 1), "calls = 1 and afs = False leave none")],
)  # fmt: skip
def test_what_one_of_the_counts_cannot_be_is_said_before_any_is_learned(
    changes: dict[str, object], calls: tuple[int, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(soap, "MOST", 40)
    config, out = toy_config(**{**DENSE, **changes}), tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        run_each(toy_mixture(), config, calls, out)
    with pytest.raises(ValueError, match=message):
        epd.distill_each(toy_mixture(), calls, config)
    assert not out.exists()


def test_points_that_a_family_has_not_are_refused_before_fewer_are_learned(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="points = 2: family 's4s' has 1"):
        run_points(toy_mixture(), toy_config(family="s4s"), (2,), (1, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_learned_field_is_in_tensorboard(cache: Path, tmp_path: Path) -> None:
    path = run_each(toy_mixture(), toy_config(**DENSE, points=2), (2,), tmp_path)[2]
    events = EventAccumulator(str(path.parent / "tb"))
    events.Reload()
    tags = {tag.split("/")[0] for tag in events.Tags()["scalars"]}
    assert tags >= set(FAMILIES["dense"].learn)


def test_a_table_that_no_file_holds_is_not_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Trainer, "updates", lambda *_: pytest.fail("learns in vain"))
    with pytest.raises(ValueError, match="more than 262144 that are read again: give fewer calls"):
        run_distill(toy_mixture(), toy_config(family="dense", calls=110, points=7, optimizer="adam"), tmp_path / "x")
    with pytest.raises(ValueError, match="more than 262144 that are read again"):
        run_each(toy_mixture(), toy_config(family="dense", points=7, optimizer="adam"), (2, 110), tmp_path / "y")
    assert not [*tmp_path.iterdir()]
