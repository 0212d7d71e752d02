"""Tables as JSON: exact, human-diffable, and checked in every type and size when read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..formats.json_text import MAX_VALUES, parse_json, rows_of_json, values_in
from .table import Provenance, Table, TableError
from .table_checks import LESS, MAX_SIZE

FORMAT = "epd-table"
SCALES = ("slope_scale", "sigma_scale", "anchor_scale", "guidance_scale", "anchor_guidance")
ARRAYS = ("sigmas", "nodes", "weights", *SCALES, "anchor", "memory", "lookahead")
FIELDS = tuple(f.name for f in dataclasses.fields(Table))
# Version 2 has these, first steps of no call, and rows of memory and lookahead that end with what there is to weigh. A
# table that needs none of them is written as version 1: its digest stays, and older readers have it, too. Version 3 has
# factors of the guidance beside them.
SINCE_VERSION_2 = ("anchor_scale", "consistent")
SINCE_VERSION_3 = ("guidance_scale", "anchor_guidance")
FIELDS_OF = {
    1: tuple(name for name in FIELDS if name not in SINCE_VERSION_2 + SINCE_VERSION_3),
    2: tuple(name for name in FIELDS if name not in SINCE_VERSION_3),
    3: FIELDS,
}


def version_of(table: Table) -> int:
    """The least version that holds a table."""
    if table.scales_guidance:
        return 3
    return 1 if table.consistent and table.calls[0] and bool((table.anchor_scale == 1).all()) else 2


def to_dict(table: Table) -> dict[str, Any]:
    """A table as plain lists and numbers, defaults left out."""
    version = version_of(table)
    out: dict[str, Any] = {"format": FORMAT, "version": version}
    for name in FIELDS_OF[version]:
        value = getattr(table, name)
        if name in ARRAYS:
            if value is not None and not _is_default(table, name):
                out[name] = value.tolist() if version == 1 else _trimmed(table, name)
        elif name == "consistent":
            out |= {} if value else {name: value}
        elif name == "calls":
            out[name] = value[0] if len(set(value)) == 1 else list(value)
        elif name == "provenance":
            kept = dataclasses.asdict(value)
            kept |= {"resolution": list(value.resolution), "accelerators": list(value.accelerators)}
            out[name] = {k: v for k, v in kept.items() if v not in ("", None, [], {})}
        else:
            out[name] = value
    return out


def _trimmed(table: Table, name: str) -> list[Any]:
    """A field without the zeros at a row's end where no earlier step fills memory; the last row is whole."""
    rows = getattr(table, name).tolist()
    if name not in ("memory", "lookahead"):
        return rows
    for n in range(table.num_steps - 1):
        filled = max(table.available[n].memory, default=-1) + 1
        rows[n] = rows[n][:filled] if name == "memory" else [row[: 1 + filled] for row in rows[n]]
    return rows


def _padded(name: str, rows: list[Any]) -> list[Any]:
    """The rows of `_trimmed`, all as long as the last one.

    Raises:
        TableError: for a row that is longer.
    """
    flat = rows
    if name == "lookahead":
        _require_lists(name, rows)
        flat = [row for step in rows for row in step]
    _require_lists(name, flat)
    whole = len(flat[-1]) if flat else 0
    if any(len(row) > whole for row in flat):
        raise TableError(f"{name} has a row that is longer than the last one, {whole}: the last row is whole")
    if whole * len(flat) > MAX_SIZE:
        raise TableError(f"{name} has {whole * len(flat)} numbers, more than {MAX_SIZE}: {LESS}")

    def wide(row: list[Any]) -> list[Any]:
        return row + [0.0] * (whole - len(row))

    return [[wide(row) for row in step] for step in rows] if name == "lookahead" else [wide(row) for row in rows]


def _require_lists(name: str, rows: list[Any]) -> None:
    if not all(isinstance(row, list) for row in rows):
        raise TableError(f"{name} must be rows of numbers, one or, in a look-ahead, one for each point per step")


def _is_default(table: Table, name: str) -> bool:
    array = getattr(table, name)
    if name in SCALES:
        return bool((array == 1).all())
    return name in ("anchor", "memory") and not array.any() and (name == "anchor" or array.shape[1] == 0)


def dumps(table: Table) -> str:
    """JSON with one line per row of numbers, so that a diff shows which step changed.

    Raises:
        TableError: for a table with more numbers than `loads` takes, or a provenance that JSON cannot hold.
    """
    try:
        text = rows_of_json(to_dict(table))
    except (TypeError, ValueError) as error:  # the numbers are proven: only the provenance can hold such a thing
        raise TableError(f"provenance cannot be JSON: {error}; keep to finite numbers, texts, lists, dicts") from error
    if (count := values_in(text)) > MAX_VALUES:
        raise TableError(
            f"a table of {table.num_steps} steps with {table.num_nodes} fan points and {table.columns} remembered "
            f"slopes takes {count} values in a file, more than {MAX_VALUES} that are read again: {LESS}"
        )
    return text


def proven(table: Table) -> str:
    """`dumps`' text, which `loads` reads.

    Raises:
        TableError: for a table that could not be read again, because of its size or its provenance.
    """
    text = dumps(table)
    loads(text, "this table")
    return text


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
    version = data.get("version")
    if data.get("format") != FORMAT or type(version) is not int or version not in FIELDS_OF:
        raise TableError(
            f"format = {data.get('format')!r}, version = {version!r}: this reads {FORMAT!r} versions 1 to 3"
        )
    keys = FIELDS_OF[version]
    unknown = sorted(set(data) - set(keys) - {"format", "version"})
    if unknown:
        raise TableError(f"unknown key {unknown[0]!r}; known in version {version} are {', '.join(keys)}")
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
    if type(data.get("consistent", True)) is not bool:
        raise TableError(f"consistent = {data['consistent']!r} must be a boolean")
    values = {k: data[k] for k in keys if k in data and k != "provenance"}
    if version >= 2:
        values |= {k: _padded(k, values[k]) for k in ("memory", "lookahead") if k in values}
    table = Table(**values, provenance=_provenance(data.get("provenance", {})))
    if version_of(table) > version:
        raise TableError(f"calls = {calls}: first steps of no call are of version 2, this says version {version}")
    return table


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
    checks |= {"guidance": (int, float), "seed": int, "resolution": list, "accelerators": list}
    for key, value in data.items():
        if not isinstance(value, checks[key]) or isinstance(value, bool):
            raise TableError(f"provenance.{key} = {str(value)[:40]!r} has the wrong type {type(value).__name__}")
    if not all(type(v) is int for v in data.get("resolution", ())):
        raise TableError(f"provenance.resolution = {str(data['resolution'])[:40]} must be a list of integers")
    if not all(type(v) in (int, float) for v in data.get("metrics", {}).values()):
        raise TableError(f"provenance.metrics = {str(data['metrics'])[:40]} must hold numbers only")
    if not all(isinstance(v, dict) for v in data.get("accelerators", ())):
        raise TableError(f"provenance.accelerators = {str(data['accelerators'])[:40]} must be a list of objects")
    return Provenance(**{**data, **{k: tuple(data.get(k, ())) for k in ("resolution", "accelerators")}})
