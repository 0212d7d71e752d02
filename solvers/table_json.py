"""Tables as JSON: exact, human-diffable, and checked in every type and size when read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..formats.json_text import parse_json, rows_of_json
from .table import Provenance, Table, TableError

FORMAT, VERSION = "epd-table", 1
ARRAYS = ("sigmas", "nodes", "weights", "slope_scale", "sigma_scale", "anchor", "memory", "lookahead")
FIELDS = tuple(f.name for f in dataclasses.fields(Table))


def to_dict(table: Table) -> dict[str, Any]:
    """A table as plain lists and numbers, defaults left out."""
    out: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for name in FIELDS:
        value = getattr(table, name)
        if name in ARRAYS:
            if value is not None and not _is_default(table, name):
                out[name] = value.tolist()
        elif name == "calls":
            out[name] = value[0] if len(set(value)) == 1 else list(value)
        elif name == "provenance":
            kept = dataclasses.asdict(value)
            kept["resolution"] = list(value.resolution)
            out[name] = {k: v for k, v in kept.items() if v not in ("", None, [], {})}
        else:
            out[name] = value
    return out


def _is_default(table: Table, name: str) -> bool:
    array = getattr(table, name)
    if name in ("slope_scale", "sigma_scale"):
        return bool((array == 1).all())
    return name in ("anchor", "memory") and not array.any() and (name == "anchor" or array.shape[1] == 0)


def dumps(table: Table) -> str:
    """JSON with one line per row of numbers, so that a diff shows which step changed."""
    try:
        return rows_of_json(to_dict(table))
    except (TypeError, ValueError) as error:  # the numbers are proven: only the provenance can hold such a thing
        raise TableError(f"provenance cannot be JSON: {error}; keep to finite numbers, texts, lists, dicts") from error


def loads(text: str, source: str = "table") -> Table:
    """Reads `dumps`' text; every fault is one TableError that names the source.

    Raises:
        TableError: for anything but a valid table of this format and version.
    """
    data = parse_json(text, TableError, source)
    try:
        return from_dict(data)
    except TableError as error:
        raise TableError(f"{source}: {error}") from error


def from_dict(data: Any) -> Table:  # noqa: ANN401 - whatever a file held
    """A table of parsed JSON, types checked before anything is converted."""
    if not isinstance(data, dict):
        raise TableError(f"a table is a JSON object, not {type(data).__name__}")
    if data.get("format") != FORMAT or type(data.get("version")) is not int or data["version"] != VERSION:
        raise TableError(
            f"format = {data.get('format')!r}, version = {data.get('version')!r}: "
            f"this reads {FORMAT!r} version {VERSION}"
        )
    unknown = sorted(set(data) - set(FIELDS) - {"format", "version"})
    if unknown:
        raise TableError(f"unknown key {unknown[0]!r}; known are {', '.join(FIELDS)}")
    missing = [k for k in ("sigmas", "nodes", "weights") if k not in data]
    if missing:
        raise TableError(f"the key {missing[0]!r} is missing")
    for name in ARRAYS:
        if name in data:
            _require_numbers(name, data[name])
    calls = data.get("calls", 2)
    if not (type(calls) is int or (isinstance(calls, list) and all(type(c) is int for c in calls))):
        raise TableError(f"calls = {calls!r} must be 1 or 2, or a list of them")
    if type(data.get("order", 1)) is not int or type(data.get("afs", False)) is not bool:
        raise TableError(f"order = {data.get('order')!r} must be an integer and afs = {data.get('afs')!r} a boolean")
    values = {k: data[k] for k in FIELDS if k in data and k != "provenance"}
    return Table(**values, provenance=_provenance(data.get("provenance", {})))


def _require_numbers(name: str, value: Any, depth: int = 0) -> None:  # noqa: ANN401
    if not isinstance(value, list) or depth > 2:
        raise TableError(f"{name} must be nested lists of numbers (at most 3 deep), found {type(value).__name__}")
    for item in value:
        if isinstance(item, list):
            _require_numbers(name, item, depth + 1)
        elif type(item) not in (int, float) or not _is_finite(item):
            raise TableError(f"{name} holds {str(item)[:40]!r}, which is not a finite number")


def _is_finite(item: float) -> bool:
    try:
        return math.isfinite(item)
    except OverflowError:  # an integer beyond float's range
        return False


def _provenance(data: Any) -> Provenance:  # noqa: ANN401
    if not isinstance(data, dict):
        raise TableError(f"provenance must be an object, not {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(Provenance)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise TableError(f"unknown provenance key {unknown[0]!r}; put foreign entries into 'metadata'")
    texts = ("model", "path", "schedule", "prediction", "parent", "citation", "notes")
    checks: dict[str, Any] = {k: str for k in texts} | {"config": dict, "metrics": dict, "metadata": dict}
    checks |= {"guidance": (int, float), "seed": int, "resolution": list}
    for key, value in data.items():
        if not isinstance(value, checks[key]) or isinstance(value, bool):
            raise TableError(f"provenance.{key} = {str(value)[:40]!r} has the wrong type {type(value).__name__}")
    if not all(type(v) is int for v in data.get("resolution", ())):
        raise TableError(f"provenance.resolution = {str(data['resolution'])[:40]} must be a list of integers")
    if not all(type(v) in (int, float) for v in data.get("metrics", {}).values()):
        raise TableError(f"provenance.metrics = {str(data['metrics'])[:40]} must hold numbers only")
    return Provenance(**{**data, "resolution": tuple(data.get("resolution", ()))})
