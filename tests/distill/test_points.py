"""How many points a call holds: as the model's calls take their time."""

from __future__ import annotations

import logging

import pytest
from helpers.counting import counting
from helpers.toy_models import toy_config

from epd import limit_rows
from epd.distill import points
from epd.distill.points import samples_timed, settled
from epd.solvers import auto


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 2), (1.2, 2), (1.3, 1), (2.0, 1)])
def test_a_second_point_is_taken_where_it_is_nearly_free(
    ratio: float, expected: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "epd")
    monkeypatch.setattr(points, "_ratio", lambda *args: ratio)
    assert settled(counting(), toy_config(family="dense")).points == expected
    assert f"points = {expected}: a call of 128 rows takes {ratio:.2f} times as long as one of 64" in caplog.text


@pytest.mark.parametrize(("limit", "samples"), [(None, 64), (100, 50), (3, 1), (1, 1)])
def test_a_few_calls_within_the_row_limit_are_timed(limit: int | None, samples: int) -> None:
    model = counting()
    limited = limit_rows(model, limit)
    assert samples_timed(limited) == samples
    assert settled(limited, toy_config(family="dense")).points in (1, 2)
    assert max(model.calls) <= (limit or 128) and sum(model.calls) == 6 * 3 * samples


def test_the_calls_are_taken_in_turn_and_the_fastest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does something else for a while, be it during the calls of one kind, changes nothing."""
    model = counting()
    ticks = [0.0]

    def clock() -> float:
        rows = model.calls[-1] if model.calls else 0
        ticks[0] += 0.5 * rows + (1000 if 2 < len(model.calls) < 8 else 0)
        return ticks[0]

    monkeypatch.setattr(auto.time, "perf_counter", clock)
    assert settled(model, toy_config(family="dense")).points == 1
    assert model.calls == [64, 128] * 6


def test_large_samples_are_timed_one_by_one() -> None:
    assert samples_timed(counting((1, 512, 512), plain=True)) == 1


@pytest.mark.parametrize(("family", "expected"), [("two-call", 2), ("epd", 2), ("s4s", 1), ("amed", 1)])
def test_other_families_have_theirs(family: str, expected: int) -> None:
    model = counting()
    assert settled(model, toy_config(family=family)).points == expected and not model.calls
    assert settled(model, toy_config(family="dense", points=3)).points == 3 and not model.calls
