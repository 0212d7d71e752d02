"""Fixtures of the tests that run the command."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epd import cli
from epd.solvers.table import Provenance, Table

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """The command sets up logging; other tests go without."""
    log = logging.getLogger("epd")
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def table(**changes: object) -> Table:
    """A table of 5 sequential calls for `digits-exact`."""
    values: dict[str, object] = {
        "sigmas": [80.0, 5.0, 0.5, 0.002],
        "nodes": [[0.3, 0.7]] * 3,
        "weights": [[0.5, 0.5]] * 3,
        "afs": True,
        "provenance": Provenance(model="digits-exact", path="ve"),
    }
    return Table(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "solver.json"
    table().save(path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where teachers of this test are kept."""
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
