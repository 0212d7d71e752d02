"""Rows by number, a fixed few in a file: dealt out to processes, kept as they are computed, read in one order."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ..formats.files import write_atomically
from ..runs.processes import Workers
from ..runs.progress import progress

log = logging.getLogger("epd")
SHARD = 128  # rows that a killed process computes again at most
PROBE, IDENTITY = "probe.safetensors", "identity.json"
Work = Callable[[range], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Shards:
    """Rows 0, ..., count - 1 in files of SHARD rows, whatever computes them, in a folder that all processes see.

    More rows go on from fewer: only the last, shorter file is computed anew.
    """

    folder: Path
    count: int

    @classmethod
    def of(cls, keep: Path, identity: Mapping[str, Any], count: int) -> Shards:
        """In a folder in `keep` that stands for `identity`, which is ready for JSON."""
        return cls(keep / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16], count)

    @property
    def parts(self) -> list[range]:
        """The rows of each file."""
        return [range(at, min(at + SHARD, self.count)) for at in range(0, self.count, SHARD)]

    def path(self, part: range) -> Path:
        return self.folder / f"{part.start:09d}-{len(part)}.safetensors"

    def begin(self, identity: Mapping[str, Any], probe: Mapping[str, Tensor]) -> None:
        """Says whose rows these are, sweeps what a kill left, and empties a folder of another network of this name.

        Args:
            identity: for people; the folder's name stands for it.
            probe: what each network makes of one fixed input.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self._probe()
        if before is not None and not _alike(before, probe):
            log.warning("%s is of another network under the same name: computing it anew", self.folder)
            for path in self.folder.glob("*.safetensors"):
                path.unlink()
        for path in self.folder.glob(".*.safetensors.*"):
            path.unlink(missing_ok=True)
        write_atomically(self.folder / IDENTITY, (json.dumps(identity, indent=1) + "\n").encode())
        write_atomically(self.folder / PROBE, save({name: answer.contiguous() for name, answer in probe.items()}))

    def fill(self, work: Work, workers: Workers, what: str, batch: int = SHARD) -> None:
        """Computes what is missing.

        The processes go in step, batch by batch, so that all of them hear at once of one that fails or is gone.

        Args:
            work: numbers of rows -> tensors by name, a row for each; the same names every time.
            what: is computed, for the progress bar.
            batch: rows that are computed together; at most a file's.

        Raises:
            ProcessError: where `work` failed in another process, or that is gone; its own error is raised there.
        """
        batch = min(batch, SHARD)
        parts = self.parts
        # What the first process sees counts: a file that another one just wrote must not shift who computes what.
        flags = workers.mean(1, len(parts), lambda _: torch.tensor([float(self._whole(part)) for part in parts]))
        missing = [part for part, there in zip(parts, flags.tolist(), strict=True) if not there]
        if len(missing) < len(parts):
            log.info("%s: %d of %d files are there already", what, len(parts) - len(missing), len(parts))

        def own() -> Iterator[None]:
            for part in progress(missing[workers.rank :: workers.count], what, "file"):
                found: list[dict[str, Tensor]] = []
                for at in range(0, len(part), batch):
                    rows = part[at : at + batch]
                    found.append({name: tensor.cpu() for name, tensor in work(rows).items()})
                    assert all(len(tensor) == len(rows) for tensor in found[-1].values()), "a row for each number"
                    yield
                tensors = {name: torch.cat([one[name] for one in found]).contiguous() for name in found[0]}
                write_atomically(self.path(part), save(tensors))

        steps = own()
        # One more than the batches of the most files: what follows the last of them is the writing of its file.
        for _ in range(math.ceil(len(missing) / workers.count) * math.ceil(SHARD / batch) + 1):
            workers.together(lambda: next(steps, None))

    def read(self) -> dict[str, Tensor]:
        """All rows in order, by name; raises what `stream` does."""
        return {name: torch.cat([*self.stream(name)]) for name in self.names()}

    def names(self) -> list[str]:
        """What there is of each row; raises what `stream` does."""
        with safe_open(self._there(self.parts[0]), framework="pt") as file:
            return [*file.keys()]

    def stream(self, name: str) -> Iterator[Tensor]:
        """The rows of one name in order, file by file.

        Raises:
            OSError: for a file that is not there, as where processes have folders of their own.
        """
        for part in self.parts:
            with safe_open(self._there(part), framework="pt") as file:
                yield file.get_tensor(name)

    def _there(self, part: range) -> Path:
        if not self.path(part).exists():
            raise OSError(
                f"{self.path(part)} is missing though a process has written it: give all processes one --out on a "
                "shared disk, and run the same command again"
            )
        return self.path(part)

    def _whole(self, part: range) -> bool:
        path = self.path(part)
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                sizes = [file.get_slice(name).get_shape()[0] for name in file.keys()]  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, ValueError, IndexError) as error:
            log.warning("%s cannot be read (%s): computing it again", path, error)
            return False
        return bool(sizes) and all(size == len(part) for size in sizes)

    def _probe(self) -> dict[str, Tensor] | None:
        """What each network made of the fixed input; nothing where none was asked yet, or the file is damaged."""
        try:
            return load_file(self.folder / PROBE)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s cannot be read (%s)", self.folder / PROBE, error)
            return None


def _alike(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
    """Whether two sets of answers differ by no more than machines do."""
    return before.keys() == now.keys() and all(same_answers(before[name], now[name]) for name in now)


def same_answers(a: Tensor, b: Tensor) -> bool:
    """Whether two answers of networks to one input differ by rounding at most."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().mean()))
