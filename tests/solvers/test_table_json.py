"""Tables as JSON: every bit is kept, and a failed save changes nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from helpers.tables import FAMILIES, PLAIN, changed, full_table
from hypothesis import given, settings
from hypothesis import strategies as st

import epd
from epd.formats import json_text
from epd.solvers import table_json

Table, Provenance, TableError = epd.Table, epd.Provenance, epd.TableError
every_family = pytest.mark.parametrize("name", FAMILIES)
ARRAYS = ("sigmas", "nodes", "weights", "slope_scale", "sigma_scale", "anchor_scale", "anchor", "memory")


def plain(**changes: Any) -> epd.Table:  # noqa: ANN401 - any field, right or wrong
    return dataclasses.replace(PLAIN, **changes)


def full(**changes: Any) -> epd.Table:  # noqa: ANN401
    return dataclasses.replace(full_table(past=1), **changes)


POSITIVE = st.floats(min_value=5e-324, max_value=1.7976931348623157e308, allow_nan=False)
INSIDE = st.floats(min_value=5e-324, max_value=1 - 2**-53, allow_nan=False)
TEXT = st.text(max_size=20)  # any Unicode, control characters and all
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PROVENANCE = st.builds(
    Provenance,
    model=TEXT,
    path=st.sampled_from(["", "ve", "flow"]),
    schedule=TEXT,
    guidance=st.none() | FINITE,
    prediction=TEXT,
    resolution=st.lists(st.integers(1, 4096), max_size=3).map(tuple),
    seed=st.none() | st.integers(),
    config=st.dictionaries(TEXT, JSON, max_size=3),
    metrics=st.dictionaries(TEXT, FINITE, max_size=3),
    parent=TEXT,
    citation=TEXT,
    notes=TEXT,
    metadata=st.dictionaries(TEXT, JSON, max_size=3),
)


@st.composite
def tables(draw: st.DrawFn) -> epd.Table:
    """Any structure, with numbers from one end of float64 to the other."""
    width, past, afs = draw(st.integers(0, 3)), draw(st.integers(0, 2)), draw(st.booleans())
    calls = draw(st.lists(st.sampled_from([1, 2] if width else [1]), min_size=4, max_size=4))
    if not afs and draw(st.booleans()):
        calls[0] = 0
    base = full_table(calls, afs, width, past, seed=draw(st.integers(0, 99)), free=draw(st.booleans()))
    sigmas = sorted(draw(st.lists(POSITIVE, min_size=5, max_size=5, unique=True)), reverse=True)
    rows = {k: [[draw(v) for _ in range(width)] for _ in range(4)] for k, v in SCALES.items()}
    changes: dict[str, Any] = {"provenance": draw(PROVENANCE), "sigmas": sigmas, **rows}
    if not past and draw(st.booleans()):
        changes |= {"lookahead": None, "order": draw(st.integers(1, 4))}
    return dataclasses.replace(base, **changes)


SCALES = {"nodes": INSIDE, "slope_scale": POSITIVE, "sigma_scale": POSITIVE}


def bits(table: epd.Table) -> dict[str, bytes | None]:
    arrays: dict[str, bytes | None] = {name: getattr(table, name).tobytes() for name in ARRAYS}
    return arrays | {"lookahead": None if table.lookahead is None else table.lookahead.tobytes()}


@settings(max_examples=200)
@given(tables())
def test_json_round_trip_keeps_every_bit(table: epd.Table) -> None:
    text = table_json.dumps(table)
    back = table_json.loads(text)
    assert back == table
    assert bits(back) == bits(table)
    assert back.provenance == table.provenance
    assert (back.digest, hash(back)) == (table.digest, hash(table))
    assert (back.order, back.afs, back.calls) == (table.order, table.afs, table.calls)
    assert table_json.dumps(back) == text
    assert Table.from_dict(table.to_dict()) == table


@every_family
def test_saved_is_loaded(name: str, tmp_path: Path) -> None:
    table = dataclasses.replace(FAMILIES[name], provenance=Provenance(model="Modell ü", config={"a": [1, {"b": None}]}))
    table.save(tmp_path / "new folder" / "solver.json")
    assert Table.load(str(tmp_path / "new folder" / "solver.json")) == table


def test_json_shows_a_step_per_line_and_leaves_defaults_out() -> None:
    text = table_json.dumps(PLAIN)
    assert text.splitlines() == [
        "{",
        '  "format": "epd-table",',
        '  "version": 1,',
        '  "sigmas": [4.0, 2.0, 1.0],',
        '  "nodes": [',
        "    [0.3, 0.8],",
        "    [0.6, 0.1]",
        "  ],",
        '  "weights": [',
        "    [0.25, 0.75],",
        "    [0.5, 0.5]",
        "  ],",
        '  "order": 1,',
        '  "afs": false,',
        '  "calls": 2,',
        '  "provenance": {}',
        "}",
    ]


def test_digest_is_of_the_numbers_and_stays_what_it_is() -> None:
    # Children name their parents by it: it may not change with a version of ours.
    assert PLAIN.digest == "177d2f3fc4b28d55fe50bbbec34d63d347145926ea857cb9bcebdb5e4b4ea812"
    assert plain(provenance=Provenance(model="x", seed=3)).digest == PLAIN.digest
    assert plain(provenance=Provenance(model="x")) != PLAIN
    defaults = {"slope_scale": np.ones((2, 2)), "anchor": [0, 0], "memory": np.zeros((2, 0)), "calls": [2, 2]}
    assert plain(**defaults).digest == PLAIN.digest


@pytest.mark.parametrize("name", [*ARRAYS, "lookahead"])
def test_digest_sees_the_last_bit_of_every_field(name: str) -> None:
    table = full_table(afs=True)
    at = tuple(np.argwhere(getattr(table, name) != 0)[-1])
    value = float(np.nextafter(getattr(table, name)[at], 9))
    other = dataclasses.replace(table, **{name: changed(table, name, at, value)})
    assert other.digest != table.digest
    assert other != table


def test_digest_sees_order_afs_and_calls() -> None:
    others = [plain(order=2), plain(afs=True), FAMILIES["one call"], FAMILIES["mixed calls"], PLAIN]
    assert len({table.digest for table in others}) == len({*others}) == 5


def full_device(handle: int, mode: str) -> IO[Any]:
    """The kernel's own "no space left on device", at the flush."""
    os.close(handle)
    return open("/dev/full", mode)


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


FAILURES: dict[str, tuple[str, Callable[..., Any], type[BaseException]]] = {
    "full disk at sync": ("fsync", refuse, OSError),
    "refused rename": ("replace", refuse, OSError),
    "Ctrl-C at sync": ("fsync", interrupt, KeyboardInterrupt),
    "Ctrl-C at rename": ("replace", interrupt, KeyboardInterrupt),
}
if Path("/dev/full").exists():  # Linux has it
    FAILURES["full device"] = ("fdopen", full_device, OSError)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "solver.json"
    PLAIN.save(path)
    before = path.read_bytes()
    name, stand_in, error = FAILURES[failure]
    monkeypatch.setattr(f"epd.formats.files.os.{name}", stand_in)
    with pytest.raises(error) as caught:
        full().save(path)
    if error is OSError:
        assert str(path) in str(caught.value)
        assert "what was there before is unchanged" in str(caught.value)
        assert caught.value.errno == 28  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["solver.json"]
    full().save(path)
    assert Table.load(path) == full()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", torch.zeros(1)])
def test_a_provenance_that_json_cannot_hold_is_one_clear_error(value: object, tmp_path: Path) -> None:
    table = plain(provenance=Provenance(config={"a": value}))
    path = tmp_path / "solver.json"
    PLAIN.save(path)
    with pytest.raises(TableError, match="provenance cannot be JSON: .*; keep to finite numbers"):
        table.save(path)
    assert Table.load(path) == PLAIN


WRONG: list[dict[str, Any]] = [
    {"seed": 1.5}, {"metrics": {"x": "a"}}, {"model": 3}, {"guidance": True}, {"config": [1]},
    {"accelerators": ("reuse",)},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
def test_a_provenance_that_is_not_read_again_is_not_written(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TableError, match=f"this table: provenance.{next(iter(wrong))} = "):
        plain(provenance=Provenance(**wrong)).save(tmp_path / "solver.json")
    assert not [*tmp_path.iterdir()]


def test_nothing_is_written_that_is_not_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bound of readers, 2 ** 18, made small: by one value more than the table has, and by one less."""
    table, path = full_table(past=2), tmp_path / "solver.json"
    count = sum(table_json.dumps(table).count(mark) for mark in ",[{")
    for module in (table_json, json_text):
        monkeypatch.setattr(module, "MAX_VALUES", count)
    table.save(path)
    assert Table.load(path) == table
    for module in (table_json, json_text):
        monkeypatch.setattr(module, "MAX_VALUES", count - 1)
    with pytest.raises(TableError, match=f"6 remembered slopes takes {count} values in a file, more than {count - 1} "):
        table.save(path)
    assert path.exists() and len(list(tmp_path.iterdir())) == 1  # what was there stays
