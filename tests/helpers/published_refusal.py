"""Runs the reader on hostile files and watches what else happens."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from epd.formats.published import PublishedTableError, read_published
from helpers import golden
from helpers.published_files import Model, Tensor, inner, model_of

TABLE = golden.tables()["00002-cifar10-4-5-epd-uni1.0-afs"]
R = np.array(TABLE["raw"]["r_params"], np.float32)

_log: list[tuple[str, Any]] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _log is not None:
        _log.append((event, arguments[0] if arguments else None))


sys.addaudithook(_audit)


def events_of(path: Path) -> tuple[str | None, list[tuple[str, Any]]]:
    """The error message (None if read) and everything that Python's audit saw: imports, calls, files, processes."""
    global _log
    message = None
    _log = events = []
    try:
        read_published(path)
    except PublishedTableError as error:
        message = str(error)
    finally:
        _log = None
    return message, events


def refusal(data: bytes, folder: Path, name: str = "hostile.pkl") -> str:
    """The message of the one error for a hostile file, after proving that reading it had no side effect."""
    path = folder / name
    path.write_bytes(data)
    modules, files = set(sys.modules), os.listdir(folder)
    message, events = events_of(path)
    assert message is not None, "a hostile file was read"
    assert str(path) in message and "; allowed is " in message and "nothing in it was executed" in message
    assert len(message) < 3000
    beyond = [e for e in events if e not in (("open", str(path)), ("open", path))]
    assert not beyond, str(beyond)[:300]
    assert set(sys.modules) == modules
    assert os.listdir(folder) == files
    return message


def model() -> Model:
    """A valid model, to be spoiled."""
    return model_of(TABLE)


def with_attribute(value: object) -> bytes:
    """A file with one attribute more."""
    hostile = model()
    hostile.state["bomb"] = value
    return hostile.data()


def with_parameter(tensor: object) -> bytes:
    """A file with other r_params."""
    hostile = model()
    hostile.state["_parameters"]["r_params"] = tensor
    return hostile.data()


def with_stream(stream: bytes) -> bytes:
    """A file whose r_params are stored in this inner stream."""
    return with_parameter(Tensor(R, parameter=True, stream=stream))


def stream_of(*pickles: object, tail: bytes = bytes(300)) -> bytes:
    """A file whose r_params are stored as these pickles."""
    return with_stream(inner(*pickles) + tail)
