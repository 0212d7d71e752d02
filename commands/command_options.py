"""What all commands' options have in common: every fault in one line with its value, bound and hint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..formats.texts import perhaps


class OptionsError(Exception):
    """Options that are unknown or out of range: one line per fault. No ValueError: tyro would frame its text."""


class CommandOptions(BaseModel):
    """Options of a command.

    Raises:
        OptionsError: for values that do not fit.
    """

    def __init__(self, *args: Any, **values: Any) -> None:  # noqa: ANN401 - a stand-in for pydantic's own
        try:
            super().__init__(*args, **values)
        except ValidationError as error:
            raise OptionsError("\n".join(_describe(fault, type(self)) for fault in error.errors())) from error


def _describe(fault: ErrorDetails, schema: type[BaseModel]) -> str:
    """One fault as `calls = 300: Input should be less than or equal to 200 ...`."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_perhaps(where, schema.model_fields)}"
    message = fault["msg"].removeprefix("Value error, ")
    if not where:
        return message
    value = _short(fault["input"])
    options = fault.get("ctx", {}).get("expected", "") if fault["type"] == "literal_error" else ""
    choices = [part.strip("' ") for part in str(options).replace(" or ", ", ").split(",") if part.strip("' ")]
    hint = _perhaps(str(fault["input"]), choices) if choices else ""
    default = schema.model_fields[str(fault["loc"][0])].get_default(call_default_factory=True)
    usual = "; or leave it out" if default is None else f"; the default is {_short(default)}"
    return f"{where} = {value}: {message}{hint or usual}"


def _perhaps(text: str, choices: Iterable[str]) -> str:
    names = list(choices)
    return "; " + (perhaps(text, names).removesuffix("; ") or f"known are {', '.join(names)}")


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
