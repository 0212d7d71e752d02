"""Accelerators as JSON and as the commands spell them: both ways, and refused where something is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest

import epd
from epd.accelerators.names import ACCELERATORS, from_json, label, parse, spelt, to_json, typed


@dataclass(frozen=True)
class Kinds:
    number: int
    ratio: float = 0.5
    where: Literal["all", "fan"] = "all"
    steps: tuple[int, ...] = ()
    most: int | None = None
    on: bool = False
    share: float | tuple[float, ...] = 1.0


@pytest.mark.parametrize("text", ["reuse:steps=1", "reuse:steps=1+3,where=fan", "ras:ratio=0.75+0.5,where=fan"])
def test_spelt_and_json_both_ways(text: str) -> None:
    made = parse(text)
    assert spelt(made) == text and parse(spelt(made)) == made
    assert from_json(json.loads(json.dumps(to_json([made, made])))) == (made, made)
    assert type(made) is ACCELERATORS[text.partition(":")[0]]


def test_every_type_of_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACCELERATORS, "kinds", Kinds)
    made: Any = parse("kinds:number=3,ratio=1,where=fan,steps=4+5,most=None,on=true")
    assert made == Kinds(3, 1.0, "fan", (4, 5), None, True)
    assert type(made.ratio) is float and type(made.number) is int
    assert from_json(to_json([made])) == (made,) and parse(spelt(made)) == made
    assert parse("kinds:number=3,most=7") == Kinds(3, most=7)
    for text, share in (("0.5+0.25+1", (0.5, 0.25, 1.0)), ("0.5", 0.5)):
        made = parse(f"kinds:number=3,share={text}")
        assert made == Kinds(3, share=share) and from_json(json.loads(json.dumps(to_json([made])))) == (made,)
        assert parse(spelt(made)) == made


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("warp:speed=9", "'warp' is unknown: give one of .*reuse"),
        ("reuse", "needs 'steps': write reuse:steps="),
        ("reuse:steps", "'steps' has no value"),
        ("reuse:step=1", "reuse has no 'step': it has steps, where"),
        ("ras:ratio=0.5+x", "ras:ratio = 'x' is no float"),
        ("reuse:steps=one", "reuse:steps = 'one' is no int"),
        ("reuse:steps=1,where=here", "reuse:where = 'here': give one of all, fan"),
    ],
)
def test_what_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse(text)


@pytest.mark.parametrize(
    ("value", "kind"), [("1.5", int), (True, int), (1.5, int), ([1], float), ("yes", bool), (2, bool)]
)
def test_values_of_another_type(value: object, kind: type) -> None:
    with pytest.raises(ValueError, match="x = "):
        typed("x", value, kind)


def test_what_no_file_can_name() -> None:
    assert label(Kinds(1)) == "Kinds"  # type: ignore[arg-type] - no accelerator, but has a name
    with pytest.raises(ValueError, match="Kinds is no accelerator that a file can name"):
        to_json([Kinds(1)])  # type: ignore[list-item]


def test_every_registered_one_is_public_frozen_and_of_types_that_can_be_read() -> None:
    for name, kind in ACCELERATORS.items():
        assert getattr(epd, kind.__name__) is kind, name
        assert kind.__dataclass_params__.frozen
        assert all(field.init for field in fields(kind))
