"""JSON: read without trust in its types and sizes, written so that people can compare two versions of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import MAX_TEXT, read_text

MAX_VALUES = 2**18  # a table of 100 steps with all look-ahead weights over ten remembered steps has as many
MAX_DEPTH = 64
SIZED = (dict, list, tuple, set, str, bytes)  # YAML has them all


def read_json(
    path: Path, error: type[ValueError], limit: int = MAX_TEXT, finite: bool = True
) -> Any:  # noqa: ANN401 - any JSON value
    """What the JSON text in a regular file of at most `limit` bytes stands for.

    Args:
        finite: False lets NaN and infinities pass, which Python writes; diffusers' configurations have some.

    Raises:
        error: naming the path and what is wrong there.
    """
    return parse_json(read_text(path, error, limit), error, str(path), finite)


def parse_json(text: str, error: type[ValueError], source: str, finite: bool = True) -> Any:  # noqa: ANN401
    """What a JSON text stands for.

    Args:
        text: at most `MAX_VALUES` values, nested at most `MAX_DEPTH` deep.
        error: raised for everything that is wrong.
        source: what the message names.
    """
    count = values_in(text)  # before any is built
    if count > MAX_VALUES:
        raise error(f"{source} holds up to {count} values, more than {MAX_VALUES}: not a file of ours")
    try:
        numbers = {"parse_constant": _refuse, "parse_float": _finite} if finite else {}
        value = json.loads(text, object_pairs_hook=unique, **numbers)
        require_bounded(value, len(text) + 1)
    except (ValueError, RecursionError) as problem:  # JSONDecodeError is a ValueError
        raise error(f"{source} is not valid JSON: {problem}") from problem
    return value


def values_in(text: str) -> int:
    """At most as many values as this are in a JSON text: each but the first follows a comma or opens a container."""
    return sum(text.count(mark) for mark in ",[{")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary.

    Raises:
        ValueError: naming the first key that occurs twice.
    """
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key[:60]!r} occurs twice")
        out[key] = value
    return out


def require_bounded(value: object, most: int) -> None:
    """Walks through containers, level by level.

    Args:
        most: values and characters together. Where containers or texts are shared, a short file stands for any amount
            of them, which is spent once they are written out.

    Raises:
        ValueError: for more than `most`, or more than `MAX_DEPTH` levels.
    """
    level, left = [value], most
    for _ in range(MAX_DEPTH):
        left -= sum(len(item) for item in level if isinstance(item, SIZED))
        if left < 0:  # refused before the next level is listed
            raise ValueError(f"it stands for more than {most} values and characters")
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return [*value] if isinstance(value, (list, tuple, set)) else []


def _refuse(name: str) -> float:
    raise ValueError(f"{name} stands for a number: every number must be finite")


def _finite(text: str) -> float:
    value = float(text)  # 1e999 is infinite
    return value if math.isfinite(value) else _refuse(text)


def rows_of_json(data: Mapping[str, Any]) -> str:
    """An object as text, one line per entry and per row of numbers.

    Raises:
        TypeError, ValueError: for what JSON cannot hold.
    """
    lines = [f"  {json.dumps(key)}: {_entry(value)}" for key, value in data.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _entry(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in value) + "\n  ]"
    if isinstance(value, dict):
        return json.dumps(value, indent=2, allow_nan=False).replace("\n", "\n  ")
    return json.dumps(value, allow_nan=False)
