"""A run's folder: what it holds, whose it is, and that nothing finished in it is ever overwritten."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..formats.files import read_text, write_atomically
from .checkpoint import Checkpoint, RunError, load_checkpoint

log = logging.getLogger("epd")
CONFIG, CHECKPOINT = "config.json", "checkpoint.safetensors"


@dataclass(frozen=True)
class Held:
    """What a folder holds of a run: `finished` where its result is there, else where to go on from, if anywhere."""

    finished: bool = False
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Folder:
    """Where a run keeps its files.

    Args:
        path: of the folder; it need not exist yet.
        identity: everything that changes the run's numbers, ready for JSON; config.json and the checkpoint hold it.
    """

    path: Path
    identity: Mapping[str, Any]

    @property
    def table(self) -> Path:
        return self.path / "solver.json"

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tb"

    def held(self, resume: bool) -> Held:
        """What is there of this very run; changes nothing.

        Raises:
            RunError: where the folder holds another run, or nothing that says which; without `resume`, any run.
        """
        written = self._config()
        if not resume:
            if self.checkpoint.exists() or self.table.exists():
                raise RunError(f"{self.path} already holds a run: add --resume to continue it, or choose another --out")
            if self.config.exists() and (written is None or set(written) != set(self.identity)):
                raise RunError(f"{self.config} is not of such a run and would be overwritten: choose another --out")
            return Held()
        if written is not None:
            self._agrees(self.config, written)
        elif self.config.exists() or self.table.exists():
            return self._held_without_config()
        if self.table.exists():
            return Held(finished=True)
        return Held(checkpoint=self._checkpoint() if self.checkpoint.exists() else None)

    def begin(self) -> None:
        """Sweeps what a kill left of unfinished writes, and says in config.json whose folder this is."""
        for file in (self.table, self.config, self.checkpoint, self.history):
            for left in self.path.glob(f".{file.name}.*"):
                left.unlink(missing_ok=True)
        write_atomically(self.config, (json.dumps(self.identity, indent=2) + "\n").encode())

    def finish(self, table: str) -> None:
        """Writes the result.

        Raises:
            RunError: where there is one already, of another process that ran in the same folder.
        """
        if self.table.exists():
            raise RunError(f"{self.table} was written by another process in the meantime and is left as it is")
        write_atomically(self.table, table.encode())

    def _held_without_config(self) -> Held:
        """A checkpoint says whose folder it is, too; without one nobody does."""
        if not self.checkpoint.exists():
            problem = "cannot be read" if self.config.exists() else "is missing"
            raise RunError(f"{self.config} {problem}, so nothing says which run this is: choose another --out")
        checkpoint = self._checkpoint()
        return Held(finished=True) if self.table.exists() else Held(checkpoint=checkpoint)

    def _checkpoint(self) -> Checkpoint:
        checkpoint, identity = load_checkpoint(self.checkpoint)
        self._agrees(self.checkpoint, identity)
        return checkpoint

    def _config(self) -> dict[str, Any] | None:
        """The identity in config.json, or None where there is none that can be read."""
        return recorded_identity(self.path) or None

    def _agrees(self, path: Path, written: Mapping[str, Any]) -> None:
        what = difference(written, json.loads(json.dumps(self.identity)))
        if what:
            raise RunError(f"{path} is of another run: {what}; use the same options, or another --out")


def recorded_identity(folder: Path) -> dict[str, Any]:
    """What config.json of a run's folder says that it is; empty where there is none that can be read."""
    try:
        written = json.loads(read_text(folder / CONFIG, RunError))
    except (ValueError, RecursionError, OSError):
        return {}
    return written if isinstance(written, dict) else {}


def identity_of(folder: Path) -> dict[str, Any]:
    """What a run's folder says that it is, by its config.json or else by its checkpoint; empty where neither does."""
    recorded = recorded_identity(folder)
    if not recorded and (folder / CHECKPOINT).exists():
        try:
            recorded = load_checkpoint(folder / CHECKPOINT)[1]
        except RunError:  # told where the run is begun
            return {}
    return recorded


def difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first entry in which two identities differ, such as `config.seed was 0, is 1`; empty where none does."""
    for key in {**now, **was}:
        old, new = was.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = difference(old, new)
            if inner:
                return f"{key}.{inner}"
        elif old != new:
            return f"{key} was {old}, is {new}"
    return ""
