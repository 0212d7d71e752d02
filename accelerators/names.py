"""Accelerators by name: as JSON, and as the commands spell them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from .contract import Accelerator
from .first_block import FirstBlock
from .ilf import ILF
from .native import Native
from .rapid3 import RAPID3
from .ras import RAS
from .rehash import Rehash
from .reuse import Reuse
from .slices import Slices
from .teacache import TeaCache

# Another one is one line here.
ACCELERATORS: dict[str, type[Any]] = {
    "first_block": FirstBlock,
    "ilf": ILF,
    "native": Native,
    "rapid3": RAPID3,
    "ras": RAS,
    "rehash": Rehash,
    "reuse": Reuse,
    "slices": Slices,
    "teacache": TeaCache,
}
# Those of one group cannot be together: who keeps whole slopes, who keeps features, who changes which tokens there are.
EXCLUDE: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"rapid3", "reuse", "rehash"}), "two of them reuse slopes"),
    (frozenset({"rapid3", "ilf"}), "an answer that stands for a step ahead is not to be taken twice"),
    (frozenset({"ras"}), "two of them choose tokens"),
    (frozenset({"first_block", "ilf", "native", "ras", "rehash", "teacache"}), "one leaves out what another needs"),
    (frozenset({"native", "slices"}), "a part would be given what was kept of another"),
    (frozenset({"slices"}), "one of them says how large the parts are"),
)
LAST = frozenset({"slices"})  # change how operations are made, whatever is left of them: applied after all others


def name_of(accelerator: Accelerator) -> str:
    """The registered name.

    Raises:
        ValueError: for an object of another class.
    """
    name = label(accelerator)
    if name not in ACCELERATORS:
        raise ValueError(f"{name} is no accelerator that a file can name: give one of {', '.join(ACCELERATORS)}")
    return name


def label(accelerator: Accelerator) -> str:
    """The registered name, or that of the class of one that is not registered: it works, but no file can name it."""
    found = (name for name, kind in ACCELERATORS.items() if type(accelerator) is kind)
    return next(found, type(accelerator).__name__)


def to_json(accelerators: Sequence[Accelerator]) -> list[dict[str, Any]]:
    """Plain data: the name and every number, in the order of application."""
    return [{"name": name_of(a), **_plain(dataclasses.asdict(a))} for a in accelerators]  # type: ignore[call-overload]


def from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Accelerator, ...]:
    """What `to_json` wrote.

    Raises:
        ValueError: for an unknown name or number, or a value of another type.
    """
    return tuple(_made(str(value.get("name")), {k: v for k, v in value.items() if k != "name"}) for value in values)


def parse(text: str) -> Accelerator:
    """`ras:ratio=0.5,where=fan`; several values of one number are joined by +: `reuse:steps=1+3`.

    Raises:
        ValueError: naming the part that is wrong.
    """
    name, _, rest = text.partition(":")
    values = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: {part!r} has no value; write name:number=value,number=value")
        values[key.strip()] = value.strip()
    return _made(name.strip(), values)


def spelt(accelerator: Accelerator) -> str:
    """What `parse` reads: the numbers that are not left at their defaults; the repr of one that is not registered."""
    if label(accelerator) not in ACCELERATORS:
        return repr(accelerator)
    own = {f.name: f for f in dataclasses.fields(accelerator)}  # type: ignore[arg-type]
    values = _plain(dataclasses.asdict(accelerator))  # type: ignore[call-overload]
    chosen = [f"{n}={_word(v)}" for n, v in values.items() if v != _plain_value(own[n].default)]
    return ":".join([name_of(accelerator), ",".join(chosen)]) if chosen else name_of(accelerator)


def _word(value: Any) -> str:  # noqa: ANN401
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, (list, tuple)):
        return [_plain_value(entry) for entry in value]
    return _plain(value) if isinstance(value, Mapping) else value


def _made(name: str, values: Mapping[str, Any]) -> Accelerator:
    kind = ACCELERATORS.get(name)
    if kind is None:
        raise ValueError(f"accelerator {name!r} is unknown: give one of {', '.join(ACCELERATORS)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
    for key in values:
        if key not in fields:
            raise ValueError(f"{name} has no {key!r}: it has {', '.join(fields) or 'no numbers'}")
    missing = [
        f.name for f in dataclasses.fields(kind)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]  # fmt: skip
    if missing:
        raise ValueError(f"{name} needs {missing[0]!r}: write {name}:{missing[0]}=...")
    return kind(**{key: typed(f"{name}:{key}", value, fields[key]) for key, value in values.items()})


def typed(what: str, value: Any, kind: Any) -> Any:  # noqa: ANN401
    """A value, from a text or from JSON, as this type: numbers, texts, choices, None, tuples of them, or either.

    Raises:
        ValueError: where it is none.
    """
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value not in inside:
            raise ValueError(f"{what} = {value!r}: give one of {', '.join(map(str, inside))}")
        return value
    if origin is tuple:
        parts = value.split("+") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            parts = [parts]
        return tuple(typed(what, part, inside[0]) for part in parts)
    if origin is not None and type(None) in inside:  # T | None
        if value is None or value == "None":
            return None
        return typed(what, value, next(part for part in inside if part is not type(None)))
    if origin in (types.UnionType, typing.Union):  # one, or several
        several = isinstance(value, (list, tuple)) or (isinstance(value, str) and "+" in value)
        return typed(what, value, next(part for part in inside if (typing.get_origin(part) is tuple) == several))
    if kind is bool:
        words = {"True": True, "true": True, "False": False, "false": False, True: True, False: False}
        if isinstance(value, (bool, str)) and value in words:
            return words[value]
        raise ValueError(f"{what} = {value!r}: give true or false")
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(f"{what} = {value!r} is no {kind.__name__}")
        try:
            number = kind(value)
        except ValueError as error:
            raise ValueError(f"{what} = {value!r} is no {kind.__name__}") from error
        if kind is int and isinstance(value, float) and number != value:
            raise ValueError(f"{what} = {value!r} is no int")
        return number
    return str(value) if kind is str else value
