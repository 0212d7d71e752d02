"""A run within a time: what it decides is a plan like any other, and a resumed run keeps to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd import GaussianMixture, Table
from epd.distill import train
from epd.distill.budget import AIM, Speed, fitted, scaled
from epd.distill.config import DistillConfig
from epd.distill.plan import make_plan
from epd.distill.run import run_distill


class Clock:
    """Time that only the network takes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(GaussianMixture):
    """A model whose calls take a time that a clock knows of, and which is interrupted before one of them."""

    clock: Clock
    speed = 1e-4
    calls = 0
    stop = -1

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        self.clock.now += self.speed * len(x)
        return super().__call__(x, sigma)

    def for_seeds(self, seeds: Sequence[int]) -> Slow:
        return self


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slow:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    toy = toy_mixture()
    model = Slow(toy.means.reshape(5, 1, 2, 2), 0.5, sigma_min=0.02, sigma_max=20.0, name="toy")
    model.clock = Clock()
    monkeypatch.setattr(train, "time", model.clock)
    return model


def config(optimizer: str, minutes: float | None) -> DistillConfig:
    longer: dict[str, object] = {"iterations": 60, "screening": 10} if optimizer == "adam" else {}
    return toy_config(optimizer=optimizer, family="epd", accumulate=2, minutes=minutes, **longer)


@pytest.mark.parametrize("optimizer", ["gauss-newton", "adam", "soap"])
@pytest.mark.parametrize("schedule", [None, "polynomial"])
def test_a_fitted_plan_is_the_longest_that_fits(optimizer: str, schedule: str | None) -> None:
    plan = make_plan(toy_mixture(), toy_config(optimizer=optimizer, family="epd", schedule=schedule))
    speed = Speed(part=0.3, measurement=0.1)
    for seconds in (20.0, 100.0, 3000.0):
        found = fitted(plan, seconds, speed)
        assert speed.seconds(found) <= AIM * seconds
        longer = [scaled(plan, (found.iterations + more) / plan.iterations) for more in (1, 2)]
        assert any(speed.seconds(other) > AIM * seconds for other in longer)
        if len(plan.tables) > 1 and found.iterations > 20:  # screening keeps its share
            share = found.screening / found.total
            assert share == pytest.approx(plan.screening / plan.total, abs=0.05)


def test_too_little_time_is_one_update_of_each_kind_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    plan = make_plan(toy_mixture(), config("adam", None))
    for seconds in (-5.0, 0.0):
        found = fitted(plan, seconds, Speed(1.0, 1.0))
        assert (found.config.screening, found.iterations) == (1, 1)
    assert "minutes leave time for" in caplog.text and "expect a poor table" in caplog.text


@pytest.mark.parametrize(("optimizer", "minutes"), [("gauss-newton", 0.4), ("adam", 0.2)])
def test_minutes_are_kept_and_the_table_is_that_of_a_plan_with_these_lengths(
    optimizer: str, minutes: float, slow: Slow, tmp_path: Path
) -> None:
    """Teacher included, whose time is measured by a run without a budget on a cache of its own."""
    path = run_distill(slow, config(optimizer, minutes), tmp_path / "a")
    assert path is not None
    budget = 60 * minutes
    assert 0.7 * budget < slow.clock.now < 1.05 * budget  # Gauss-Newton tries longer steps now and then
    learned = Table.load(path)
    lengths = {key: learned.provenance.config[key] for key in ("screening", "iterations")}
    plain = config(optimizer, None)
    assert lengths != {"screening": plain.screening, "iterations": plain.iterations}
    same = run_distill(slow, plain.model_copy(update=lengths), tmp_path / "b")
    assert same is not None and same.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_resumed_run_keeps_to_what_was_decided_on_a_faster_machine(
    slow: Slow, tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_distill(slow, config("gauss-newton", 0.3), tmp_path / "whole")
    assert whole is not None
    total = slow.calls
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "another-cache"))
    slow.calls, slow.clock.now, slow.stop = 0, 0.0, math.floor(share * total)
    with pytest.raises(KeyboardInterrupt):
        run_distill(slow, config("gauss-newton", 0.3), tmp_path / "a")
    assert (tmp_path / "a" / "checkpoint.safetensors").exists()
    slow.stop, slow.speed = -1, 1e-3
    path = run_distill(slow, config("gauss-newton", 0.3), tmp_path / "a", resume=True)
    assert path is not None and path.read_bytes() == whole.read_bytes()


def test_a_state_of_another_length_is_not_gone_on_with(slow: Slow) -> None:
    plan = make_plan(slow, config("gauss-newton", 0.1))
    first = next(iter(train.distill(slow, plan)))
    with pytest.raises(ValueError, match="minutes = 0.1 with a state"):
        train.distill(slow, plan, first.state)
    assert next(iter(train.distill(slow, first.plan, first.state))).iteration == 2


def test_a_dry_run_says_how_many_updates_are_likely_to_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    updates = []
    for minutes in (0.05, 5.0):
        run_distill(toy_mixture(), config("adam", minutes), tmp_path, dry_run=True)
        updates.append(int(capsys.readouterr().out.split(" updates of")[0].split()[-1]))
    assert updates[0] < updates[1]
