"""JSON of unknown origin: linear in time, bounded in memory and in what it stands for."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from helpers.published_refusal import refusal, with_attribute
from helpers.tables import PLAIN

import epd
from epd.commands.options import Distill
from epd.commands.yaml_config import ConfigError, load_config
from epd.formats.json_text import MAX_DEPTH, MAX_VALUES, parse_json, require_bounded, unique


class Counted(str):
    """A key that counts how often any of its kind is hashed."""

    __slots__ = ()
    hashed = 0

    def __hash__(self) -> int:
        Counted.hashed += 1
        return super().__hash__()

    __eq__ = str.__eq__


def test_finding_a_key_that_occurs_twice_is_linear() -> None:
    pairs: list[tuple[str, int]] = [(Counted(i), i) for i in range(3000)]
    Counted.hashed = 0
    with pytest.raises(ValueError, match="the key '2999' occurs twice"):
        unique([*pairs, (Counted(2999), 0)])
    assert Counted.hashed <= 4 * len(pairs)


def test_the_first_key_that_occurs_twice_is_named() -> None:
    with pytest.raises(ValueError, match="the key 'b' occurs twice"):
        parse_json('{"a": 1, "b": {"a": 2}, "b": 3, "a": 4}', ValueError, "it")


@pytest.mark.parametrize("unit", ["{},", "[],", '{"":0},', "[[]],", "0,", '"",'])
def test_a_megabyte_of_json_takes_no_more_than_a_few_dozen(unit: str, tmp_path: Path) -> None:
    path = tmp_path / "solver.json"
    path.write_text('{"provenance": {"metadata": {"a": [' + unit * (2**20 // len(unit)) + "0]}}}")
    tracemalloc.start()
    try:
        with pytest.raises(epd.TableError, match=str(path)):
            epd.Table.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20


def test_values_and_depth_have_bounds() -> None:
    assert len(parse_json("[" + "0," * (MAX_VALUES - 2) + "0]", ValueError, "it")) == MAX_VALUES - 1
    with pytest.raises(ValueError, match=f"it holds up to {MAX_VALUES + 1} values, more than {MAX_VALUES}"):
        parse_json("[" + "0," * MAX_VALUES + "0]", ValueError, "it")
    assert parse_json("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), ValueError, "it")
    with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), ValueError, "it")


def test_what_is_shared_counts_each_time() -> None:
    require_bounded([["x" * 10]] * 10, 120)
    with pytest.raises(ValueError, match="more than 119 values and characters"):
        require_bounded([["x" * 10]] * 10, 119)
    with pytest.raises(ValueError, match="more than 20 values and characters"):
        require_bounded({"x" * 20: 1}, 20)


def test_a_yaml_file_whose_lists_share_lists_is_refused(tmp_path: Path) -> None:
    lines = ["a: &n0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"n{i}: &n{i} [{', '.join([f'*n{i - 1}'] * 10)}]" for i in range(1, 12)]
    path = tmp_path / "c.yaml"
    path.write_text("options:\n" + "\n".join("  " + line for line in lines))
    with pytest.raises(ConfigError, match="stands for more than 1048576 values and characters"):
        load_config(path, Distill)


def test_a_yaml_file_that_shares_a_text_or_holds_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"options:\n  a: &a {'x' * 10_000}\n  b: [{', '.join(['*a'] * 200)}]\n")
    with pytest.raises(ConfigError, match="stands for more than"):
        load_config(path, Distill)
    lines = ["a: &n0 !!pairs [x: y, x: y]"]
    lines += [f"n{i}: &n{i} !!pairs [{', '.join([f'x: *n{i - 1}'] * 10)}]" for i in range(1, 12)]
    path.write_text("options:\n" + "\n".join("  " + line for line in lines))
    with pytest.raises(ConfigError, match="stands for more than"):
        load_config(path, Distill)
    path.write_text("options: &a\n  b: [*a]\n")
    with pytest.raises(ConfigError, match="nested more than"):
        load_config(path, Distill)
    path.write_text("options: {a: &a {clean_caption: false}, b: *a}\n")
    assert load_config(path, Distill).options == {"a": {"clean_caption": False}, "b": {"clean_caption": False}}


@pytest.mark.parametrize("where", ["values", "keys"])
def test_a_published_file_that_shares_a_text_is_refused(where: str, tmp_path: Path) -> None:
    long = "x" * 20_000  # one string in the file, referred to a thousand times
    attack = [long] * 1000 if where == "values" else [{long: 1} for _ in range(1000)]
    assert "metadata too deep or too large" in refusal(with_attribute(attack), tmp_path)


def test_a_table_is_read_as_before(tmp_path: Path) -> None:
    PLAIN.save(tmp_path / "solver.json")
    assert epd.Table.from_dict(json.loads((tmp_path / "solver.json").read_text())) == PLAIN


def test_infinities_pass_only_where_python_wrote_them() -> None:
    assert parse_json("[-Infinity, 1e999]", ValueError, "it", finite=False) == [float("-inf"), float("inf")]
    with pytest.raises(ValueError, match="-Infinity stands for a number"):
        parse_json("[-Infinity]", ValueError, "it")
