"""YAML configs of the command: read, checked against its schema, every fault with its path, value and hint."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..formats.files import read_text
from ..formats.json_text import require_bounded
from .command_options import CommandOptions, OptionsError

M = TypeVar("M", bound=CommandOptions)
MAX_BYTES = 2**20


class ConfigError(ValueError):
    """A config that cannot be used: one line per fault with file, path, value, bound and hint."""


class _Loader(yaml.SafeLoader):
    """Plain data only, and no key twice (YAML would silently take the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            fault = "" if isinstance(key, yaml.ScalarNode) else "a key is a list or a mapping, not a name"
            if fault or key.value in seen:
                text = fault or f"the key {key.value!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with `-` in keys read as `_`.

    Raises:
        ConfigError: for an unreadable file, a syntax error (with its line), or anything but a mapping of names.
    """
    text = read_text(path, ConfigError, MAX_BYTES)
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        require_bounded(data, MAX_BYTES)  # aliases make little text stand for much
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem or error.context}; the file is no valid YAML") from error
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError) as error:  # the last for an odd !!timestamp
        text = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: {text}; the file is no valid YAML") from error
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path} holds {type(data).__name__}, needed a mapping such as `calls: 5`")
    return {key.replace("-", "_"): value for key, value in data.items()}


def load_config(path: Path, schema: type[M]) -> M:
    """A command's options from a YAML file; what it leaves out has its default.

    Raises:
        ConfigError: with one line for each fault.
    """
    data = read_yaml(path)
    try:
        return schema.model_validate(data)
    except OptionsError as error:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in str(error).splitlines())) from error
