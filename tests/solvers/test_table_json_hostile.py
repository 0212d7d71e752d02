"""Tables from hostile or damaged JSON: a table or one clear error, whatever the text is."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tables import FAMILIES, full_table
from hypothesis import given, settings
from hypothesis import strategies as st

import epd
from epd.solvers import table_json

Table, Provenance, TableError = epd.Table, epd.Provenance, epd.TableError
TEXT = st.text(max_size=20)  # any Unicode, control characters and all

DOCUMENT = table_json.dumps(full_table(afs=True))
HOSTILE = {
    "not valid JSON": DOCUMENT[:-9],
    "a table is a JSON object, not list": "[]",
    "a table is a JSON object, not NoneType": "null",
    "format = 'other'": DOCUMENT.replace("epd-table", "other"),
    "version = 4: this reads 'epd-table' versions 1 to 3": DOCUMENT.replace('"version": 1', '"version": 4'),
    "unknown key 'weight'; known in version 1 are sigmas, nodes": DOCUMENT.replace('"weights"', '"weight"'),
    "the key 'sigmas' is missing": re.sub(r' *"sigmas".*\n', "", DOCUMENT),
    "the key 'afs' occurs twice": DOCUMENT.replace('"afs"', '"afs": true, "afs"'),
    "NaN stands for a number": DOCUMENT.replace("40.0", "NaN"),
    "-Infinity stands for a number": DOCUMENT.replace("40.0", "-Infinity"),
    "1e999 stands for a number": DOCUMENT.replace("40.0", "1e999"),
    "1e400 stands for a number": DOCUMENT.replace('"provenance": {', '"provenance": {"guidance": 1e400'),
    "which is not a finite number": DOCUMENT.replace("40.0", "1" + "0" * 400),
    "not valid JSON: Exceeds the limit": DOCUMENT.replace("40.0", "1" * 5000),
    "sigmas holds 'True', which is not": DOCUMENT.replace("40.0", "true"),
    "sigmas holds '40', which is not": DOCUMENT.replace("40.0", '"40"'),
    "sigmas must be nested lists of numbers .* found dict": re.sub(r'"sigmas": \[.*\]', '"sigmas": {}', DOCUMENT),
    "sigmas must be nested lists of numbers": DOCUMENT.replace("40.0", "[[[[40.0]]]]"),
    "not valid JSON: maximum recursion": "[" * 200_000,
    "calls = '2' must be 1 or 2": DOCUMENT.replace('"calls": 2', '"calls": "2"'),
    "order = 1.0 must be an integer": DOCUMENT.replace('"order": 1', '"order": 1.0'),
    "afs = 1 a boolean": DOCUMENT.replace('"afs": true', '"afs": 1'),
    "unknown provenance key 'author'": DOCUMENT.replace('"provenance": {', '"provenance": {"author": 1'),
    "provenance.seed = '1.5' has the wrong type float": DOCUMENT.replace(
        '"provenance": {', '"provenance": {"seed": 1.5'
    ),
    "provenance.seed = 'True' has the wrong type bool": DOCUMENT.replace(
        '"provenance": {', '"provenance": {"seed": true'
    ),
    "provenance.resolution = .* list of integers": DOCUMENT.replace(
        '"provenance": {', '"provenance": {"resolution": ["a"]'
    ),
    "provenance.metrics = .* numbers only": DOCUMENT.replace('"provenance": {', '"provenance": {"metrics": {"a": "x"}'),
    "provenance must be an object": DOCUMENT.replace('"provenance": {}', '"provenance": []'),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_json_is_one_clear_error(message: str, tmp_path: Path) -> None:
    assert HOSTILE[message] != DOCUMENT
    path = tmp_path / "solver.json"
    path.write_text(HOSTILE[message])
    with pytest.raises(TableError, match=message) as caught:
        Table.load(path)
    assert str(caught.value).startswith(str(path))


def test_unreadable_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read: No such file"):
        Table.load(tmp_path / "none.json")
    with pytest.raises(TableError, match="cannot be read: Is a directory"):
        Table.load(tmp_path)
    (tmp_path / "a.json").write_bytes(DOCUMENT.encode("utf-16"))
    with pytest.raises(TableError, match="is not UTF-8 text"):
        Table.load(tmp_path / "a.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**40)  # sparse: reading it would take all memory there is
    with pytest.raises(TableError, match="more than 67108864"):
        Table.load(tmp_path / "huge.json")


DOCUMENTS = [
    table_json.dumps(dataclasses.replace(t, provenance=Provenance("m", "ve", seed=1))) for t in FAMILIES.values()
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.sampled_from(table_json.FIELDS), inner),
    max_leaves=6,
)


def require_table_or_error(text: str) -> None:
    try:
        table = table_json.loads(text)
    except TableError:
        return
    assert table_json.loads(table_json.dumps(table)) == table
    assert np.isfinite(table.nodes).all()
    asks = epd.plan(table.rule(), table.sigmas.tolist())
    assert sum(map(len, asks)) == table.depth


def spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:  # noqa: ANN401
    """(container, key) of everything inside a parsed document."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            spots(value[key], found)
    return found


@settings(max_examples=500)
@given(st.data())
def test_structural_fuzzing(data: st.DataObject) -> None:
    document = json.loads(data.draw(st.sampled_from(DOCUMENTS)))
    for _ in range(data.draw(st.integers(1, 3))):
        inside = spots(document, [])
        container, key = inside[data.draw(st.integers(0, len(inside) - 1))]
        action = data.draw(st.sampled_from(["replace", "delete", "copy", "nudge", "add"]))
        other, place = inside[data.draw(st.integers(0, len(inside) - 1))]
        if action == "delete":
            del container[key]
        elif action == "copy":
            container[key] = json.loads(json.dumps(other[place]))
        elif action == "nudge" and isinstance(container[key], float):
            container[key] *= data.draw(st.sampled_from([-1, 0, 1 + 1e-16, 1 + 1e-9, 1e300, 1e-300]))
        elif action == "add" and isinstance(container, list):
            container.insert(key, data.draw(ANYTHING))
        elif action == "add":
            container[data.draw(TEXT | st.sampled_from(table_json.FIELDS))] = data.draw(ANYTHING)
        else:
            container[key] = data.draw(ANYTHING)
        if not spots(document, []):
            break
    require_table_or_error(json.dumps(document))


TOKENS = st.sampled_from(
    ["NaN", "-Infinity", "1e999", "-0.0", "1e-400", "null", '"', "\\ud800", "[", "]}", ",", "{", "\0"]
)


@settings(max_examples=500)
@given(st.data())
def test_textual_fuzzing(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(DOCUMENTS))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = start + data.draw(st.integers(0, 30))
        moved = data.draw(st.integers(0, len(text)))
        new = data.draw(st.one_of(TEXT, TOKENS, st.just(text[moved : moved + 40]), st.sampled_from("0123456789.-e")))
        text = text[:start] + new + text[stop:]
    require_table_or_error(text)
