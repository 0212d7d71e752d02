"""`package.module:function` and `path/file.py:function`: functions that people write themselves, by name."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .checks import in_words

_files: set[str] = set()  # of the modules that were loaded here
PATTERN = re.compile(r"(?P<module>[A-Za-z_]\w*(\.\w+)*|.+\.py):(?P<function>[A-Za-z_]\w*)")


def is_own_function(name: str) -> bool:
    """Whether a name is `package.module:function` or `path/file.py:function`."""
    return PATTERN.fullmatch(name) is not None


def own_function(name: str, option: str, failure: type[ValueError]) -> Callable[..., Any]:
    """The function of that name.

    Args:
        name: `package.module:function`, found from the working directory, too, or `path/file.py:function`.
        option: `--model` or `--reward`, the option that the name was given to.
        failure: raised for everything that is wrong but missing packages.

    Raises:
        failure: for a file or function that is not there, or a module that fails.
    """
    match = PATTERN.fullmatch(name)
    assert match is not None, name
    source, function_name = match["module"], match["function"]
    module = _from_file(Path(source), option, failure) if source.endswith(".py") else _by_name(source, failure)
    _files.add(str(module.__file__))
    function = vars(module).get(function_name)
    if not callable(function):
        functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
        there = [key for key, value in functions.items() if value.__module__ == module.__name__]
        raise failure(f"{source} has no function {function_name!r}; it has {', '.join(there) or 'none'}")
    return function


def _by_name(name: str, failure: type[ValueError]) -> ModuleType:
    _importable(Path.cwd())
    with failures_of(name, failure):
        return importlib.import_module(name)


def _from_file(path: Path, option: str, failure: type[ValueError]) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise failure(f"no file {path}: {option} path/file.py:function needs one")
    _importable(path.resolve().parent)
    # A name of its own, so that `random.py` replaces no module; registered, as dataclasses and typing look it up.
    name = f"epd_own_{option.strip('-')}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with failures_of(str(path), failure):
        spec.loader.exec_module(module)
    return module


def own_failure(error: Exception) -> str:
    """A sentence that names the innermost line of a module of one's own that an error came through; empty: none."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _files]
    return _told(f"{lines[-1].filename}:{lines[-1].lineno}", error) if lines else ""


def _told(source: str, error: Exception) -> str:
    return f"{source} fails: {in_words(error)}; -vv shows the traceback"


@contextlib.contextmanager
def failures_of(source: str, failure: type[ValueError]) -> Iterator[None]:
    """Says whose code failed; sentences, missing packages and a lack of memory speak for themselves."""
    try:
        yield
    except (ValueError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise failure(_told(source, error)) from error


def _importable(folder: Path) -> None:
    """Puts a folder first in the search path, as Python does for the script that it runs."""
    if os.fspath(folder) not in sys.path:
        sys.path.insert(0, os.fspath(folder))
