"""`--model package.module:function` and `--model path/file.py:function`: models that people write themselves."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import torch

from ..denoisers.checks import ModelError, check_members, in_words
from ..denoisers.protocol import Model

PATTERN = re.compile(r"(?P<module>[A-Za-z_]\w*(\.\w+)*|.+\.py):(?P<function>[A-Za-z_]\w*)")


def is_own_model(name: str) -> bool:
    """Whether a model's name is `package.module:function` or `path/file.py:function`."""
    return PATTERN.fullmatch(name) is not None


def load_own_model(name: str, options: Mapping[str, object]) -> Model:
    """What the function returns when it is called with these options as keyword arguments.

    Args:
        name: `package.module:function`, found from the working directory, too, or `path/file.py:function`.
        options: the command's model options that were given, by name: `guidance=2.0`, `labels=(3, 1)`,
            `prompts=["a red fox"]`; and every entry of its `options` mapping, by its own name.

    Raises:
        ModelError: for a file or function that is not there or fails, options that the function's signature does not
            take or takes and misses, or a result that is no model.
    """
    match = PATTERN.fullmatch(name)
    assert match is not None, name
    source, function_name = match["module"], match["function"]
    module = _from_file(Path(source)) if source.endswith(".py") else _by_name(source)
    function = vars(module).get(function_name)
    if not callable(function):
        functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
        there = [key for key, value in functions.items() if value.__module__ == module.__name__]
        raise ModelError(f"{source} has no function {function_name!r}; it has {', '.join(there) or 'none'}")
    _check_signature(name, function, options)
    with _failures_of(name):
        model = function(**options)
    check_members(model)
    return model


def _by_name(name: str) -> ModuleType:
    _importable(Path.cwd())
    with _failures_of(name):
        return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise ModelError(f"no file {path}: --model path/file.py:function needs one")
    _importable(path.resolve().parent)
    # A name of its own, so that `random.py` replaces no module; registered, as dataclasses and typing look it up.
    name = f"epd_own_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _failures_of(str(path)):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _failures_of(source: str) -> Iterator[None]:
    """Says whose code failed; sentences, missing packages and a lack of memory speak for themselves."""
    try:
        yield
    except (ValueError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{source} fails: {in_words(error)}; -vv shows the traceback") from error


def _importable(folder: Path) -> None:
    """Puts a folder first in the search path, as Python does for the script that it runs."""
    if os.fspath(folder) not in sys.path:
        sys.path.insert(0, os.fspath(folder))


def _check_signature(name: str, function: Callable[..., Model], options: Mapping[str, object]) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes = ", ".join(by_name) or "no options"
    for option, value in options.items():
        if option not in by_name:
            raise ModelError(f"{option} = {value!r}: the function {name} has no argument {option!r}; it takes {takes}")
    needed = [p.name for p in by_name.values() if p.default is p.empty and p.name not in options]
    if needed:
        raise ModelError(
            f"the function {name} needs {needed[0]!r}: give --{needed[0].replace('_', '-')}, an entry of that name in "
            "--options '{...}', or a default in its signature"
        )
