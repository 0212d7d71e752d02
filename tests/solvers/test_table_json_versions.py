"""The two versions of a table's file: what was written before is read to the same bits, what is new is checked."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tables import FAMILIES, PLAIN, dense_table, full_table

import epd
from epd.solvers import table_json
from epd.solvers.named import named_table, table_names

Table, TableError = epd.Table, epd.TableError
PUBLISHED = Path(table_json.__file__).parent / "published_tables"
DIGESTS = {  # children name their parents by them
    "cifar10-epd-2x2": "a2de95c2efaae3e96627717125271982fbb88d56868baf387a983e16e873f29e",
    "cifar10-plugin-3x2": "c57ab7df854927ee18671dbf88ec9e782c0492a772acf07a2ebeddac185ba3f5",
    "flux-rdpo-8x2": "f7bd1e1edddf8c21b7effd0ac20abde6183b3239cf0db033a2d8e8b40542bc14",
}


def numbers_of(value: Any) -> list[float]:  # noqa: ANN401
    """All numbers inside nested lists."""
    return [x for item in value for x in numbers_of(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", table_names())
def test_version_1_is_read_to_the_same_bits_and_written_back_the_same(name: str, tmp_path: Path) -> None:
    source = PUBLISHED / f"{name}.json"
    document, table = json.loads(source.read_bytes()), Table.load(source)
    assert document["version"] == 1
    for field in set(document) & set(table_json.ARRAYS):
        assert getattr(table, field).tobytes() == np.array(document[field]).tobytes()
    assert (table.anchor_scale == 1).all() and table.consistent
    table.save(tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()
    of_numbers = json.dumps({k: v for k, v in document.items() if k != "provenance"}, sort_keys=True)
    assert table.digest == hashlib.sha256(of_numbers.encode()).hexdigest()


def test_digests_of_published_tables_stay() -> None:
    assert {name: named_table(name).digest for name in DIGESTS} == DIGESTS


def test_the_least_version_that_holds_a_table_is_written() -> None:
    new = {"dense", "dense, no fan", "dense, two points", "free sums", "no first call"}
    versions = {name: table.to_dict()["version"] for name, table in FAMILIES.items()}
    assert versions == {name: 2 if name in new else 1 for name in FAMILIES}
    assert dataclasses.replace(PLAIN, anchor_scale=[1, 1.5]).to_dict()["version"] == 2
    assert dataclasses.replace(PLAIN, consistent=False).to_dict()["version"] == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_version_1_says_the_same_in_version_2(name: str) -> None:
    document = FAMILIES[name].to_dict()
    table = Table.from_dict({**document, "version": 2})
    assert table == FAMILIES[name] and table.to_dict() == document


@pytest.mark.parametrize("width", [0, 1, 2])
def test_rows_of_memory_end_where_nothing_earlier_fills_them(width: int) -> None:
    """A table of nine calls holds no number that nothing uses, but for the last row's slots of the first step's fan."""
    table = dense_table(width, calls=9)
    document = table.to_dict()
    filled = [0, *(1 + n * (1 + width) for n in range(9))]  # the first step has an anchor only
    last = 9 * (1 + width)
    assert [len(row) for row in document["memory"]] == [*filled[:-1], last]
    assert all(all(row[:end]) and not any(row[end:]) for row, end in zip(document["memory"], filled, strict=True))
    assert [[len(row) for row in step] for step in document["lookahead"]] == [
        [1 + length] * width for length in [*filled[:-1], last]
    ]
    zeros = sum(value == 0 for value in numbers_of(document["lookahead"]))
    assert zeros == width * (10 + width)  # one for each anchor of a one-call step, and the last row's slots
    padded = table.memory.size + table.lookahead.size  # type: ignore[union-attr]
    assert len(numbers_of([document["memory"], document["lookahead"]])) < 0.6 * padded
    assert Table.from_dict(document).digest == table.digest


DENSE = json.loads(table_json.dumps(dense_table(2)))
MEMORY, LOOKAHEAD = DENSE["memory"], DENSE["lookahead"]
HUGE = 1_000_000
HOSTILE: dict[str, tuple[str, dict[str, Any]]] = {
    "a row longer than the last": ("memory has a row that is longer", {"memory": [*MEMORY[:2], [0.0] * 10, MEMORY[3]]}),
    "a short last row": ("memory has a row that is longer", {"memory": [*MEMORY[:3], MEMORY[3][:3]]}),
    "a direction longer than the last": (
        "lookahead has a row that is longer",
        {"lookahead": [*LOOKAHEAD[:3], [LOOKAHEAD[3][0], LOOKAHEAD[3][1][:-1]]]},
    ),
    "a missing row": (r"memory has shape \(3, 9\), needed \(4, 'any'\)", {"memory": MEMORY[1:]}),
    "missing directions": (r"lookahead has shape \(3, 2, 10\), needed \(4, 2, 10\)", {"lookahead": LOOKAHEAD[1:]}),
    "a missing point": ("lookahead must be numbers in 3", {"lookahead": [LOOKAHEAD[0][:1], *LOOKAHEAD[1:]]}),
    "no rows of memory": (r"lookahead has shape \(4, 2, 10\), needed \(4, 2, 1\)", {"memory": []}),
    "no directions": (r"lookahead has shape \(0,\), needed \(4, 2, 10\)", {"lookahead": []}),
    "a number for a row": ("memory must be rows", {"memory": [MEMORY[0], 1.0, *MEMORY[2:]]}),
    "a number for a step": ("lookahead must be rows", {"lookahead": [*LOOKAHEAD[:3], 1.0]}),
    "a number for a direction": ("lookahead must be rows", {"lookahead": [LOOKAHEAD[0], [1.0, 1.0], *LOOKAHEAD[2:]]}),
    "numbers for steps": ("lookahead must be rows", {"lookahead": [1.0] * 4}),
    "a text for a row": ("memory holds 'ab', which is not", {"memory": [*MEMORY[:3], "ab"]}),
    "an object for a row": ("memory holds '{}', which is not", {"memory": [*MEMORY[:3], {}]}),
    "flat memory": ("memory must be rows", {"memory": MEMORY[3]}),
    "memory one level too deep": (r"memory has shape \(4, 1, 1\)", {"memory": [[[0.0]]] * 4}),
    "look-ahead one level too flat": ("lookahead must be rows", {"lookahead": MEMORY}),
    "look-ahead one level too deep": (r"lookahead must be nested .* \(at most 3 deep\)", {"lookahead": [LOOKAHEAD]}),
    "many short rows": ("memory has 2000000 numbers, more than", {"memory": [[]] * 1999 + [[0.0] * 1000]}),
    "a huge last row": (r"memory has \d{13} numbers, more than", {"memory": [[]] * (HUGE - 1) + [[0.0] * HUGE * 2]}),
    "many short directions": ("lookahead has 2000000 numbers", {"lookahead": [[[]] * 999, [[0.0] * 2000]]}),
    "a new key in version 1": ("unknown key 'anchor_scale'; known in version 1 are", {"version": 1}),
    "a version that is no number": ("version = True", {"version": True}),
    "consistent as a number": ("consistent = 0 must be a boolean", {"consistent": 0}),
    "consistent as nothing": ("consistent = None must be a boolean", {"consistent": None}),
    "one step of no call": (r"calls = \[0\] must be", {"calls": [0]}),
    "no calls at all": (r"calls = \[0, 0, 0, 0\]: only the first", {"calls": 0}),
    "a later step of no call": (r"calls = \[1, 0, 1, 1\]: only the first", {"calls": [1, 0, 1, 1]}),
    "half a call": (r"calls = \[0, 1, 1.0, 1\] must be", {"calls": [0, 1, 1.0, 1]}),
    "a missing anchor scale": (r"anchor_scale has shape \(3,\), needed \(4,\)", {"anchor_scale": [1.0] * 3}),
    "anchor scales in rows": (r"anchor_scale has shape \(4, 1\)", {"anchor_scale": [[1.0]] * 4}),
    "one anchor scale": ("anchor_scale must be nested lists", {"anchor_scale": 1.0}),
    "an anchor scale of 0": (r"anchor_scale\[1\] = 0.0 must be > 0", {"anchor_scale": [1.0, 0.0, 1.0, 1.0]}),
    "an analytic anchor's scale": (r"anchor_scale\[0\] = 2.0 must be 1", {"anchor_scale": [2.0, 1.0, 1.0, 1.0]}),
    "no finite anchor scale": ("anchor_scale holds 'nan', which is not", {"anchor_scale": [1.0, float("nan"), 1, 1]}),
    "sums that are not free": ("update weights of step 0 sum to", {"consistent": True}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_version_2_is_one_clear_error(case: str) -> None:
    message, changes = HOSTILE[case]
    with pytest.raises(TableError, match=message):
        Table.from_dict(copy.copy(DENSE) | changes)


@pytest.mark.parametrize("key", ["consistent", "anchor_scale"])
def test_version_1_has_none_of_the_new_keys(key: str) -> None:
    document = full_table().to_dict() | {key: full_table().to_dict().get(key, True)}
    with pytest.raises(TableError, match=f"unknown key '{key}'; known in version 1"):
        Table.from_dict(document)


def test_version_1_has_no_first_step_of_no_call() -> None:
    document = FAMILIES["no first call"].to_dict()
    whole = {name: getattr(FAMILIES["no first call"], name).tolist() for name in ("memory", "lookahead")}
    assert Table.from_dict(document | whole).to_dict() == document
    with pytest.raises(TableError, match=r"calls = \[0, 2, 1, 2\]: .* of version 2, this says version 1"):
        Table.from_dict(document | whole | {"version": 1})


def test_version_1_has_no_short_rows() -> None:
    document = full_table().to_dict()
    assert document["version"] == 1
    document["memory"][0] = []
    with pytest.raises(TableError, match="memory must be numbers in 2 dimensions with rows of equal length"):
        Table.from_dict(document)


def test_nan_in_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "solver.json"
    path.write_text(json.dumps(DENSE | {"anchor_scale": [1.0, float("nan"), 1.0, 1.0]}))
    with pytest.raises(TableError, match="solver.json.*NaN stands for a number"):
        Table.load(path)


def test_very_many_steps_are_no_quadratic_work() -> None:
    """Steps remember what the columns hold, however many steps there are before."""
    steps = 100_000  # squared, it would be hours
    sigmas = np.geomspace(80, 0.002, steps + 1)
    table = Table(sigmas, np.zeros((steps, 0)), np.zeros((steps, 0)), anchor=np.ones(steps), calls=1)
    assert table.available[-1].memory == ()
