"""What a comparison has measured so far, on disk: a stopped one goes on, and one more table is one more cell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..denoisers.protocol import Denoiser, coefficient_device
from ..formats.files import MAX_TEXT, read_text, write_atomically
from ..runs.folder import difference
from .comparison import Cell

log = logging.getLogger("epd")
CELLS = "cells.json"


class Kept:
    """Cells and converged end points of comparisons that differ in nothing that changes a number.

    Comparisons under other options lie beside each other in `folder`, each by a digest of its identity, so that
    nothing that took hours is lost to a mistyped option. Those that differ in what their samples' end points do not
    depend on (how many samples, who judges them) share the end points: the folder of these holds the folders of cells.

    Args:
        folder: of all kept comparisons; None keeps nothing.
        ends: everything that changes a converged end point, ready for JSON.
        identity: what else changes a cell, likewise.
    """

    def __init__(self, folder: Path | None, ends: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        self.identity: dict[str, Any] = json.loads(json.dumps({**ends, **identity}))
        self.cells: dict[str, Cell | None] = {}
        self.ends: Path | None = None
        self.path: Path | None = None
        if folder is not None:
            self.ends = folder / _digest(ends)
            self.path = self.ends / _digest(self.identity) / CELLS
            self.cells = _cells(self.path)
            self._announce(folder)

    def cell(self, key: str, measure: Callable[[], Cell | None]) -> Cell | None:
        """The cell of this key, measured if it is not there yet; None is a result, too."""
        if key not in self.cells:
            self.cells[key] = measure()
            self._write()
        return self.cells[key]

    def end(self, number: int, denoiser: Denoiser, noise: Tensor, sigma: float, solve: Callable[[], Tensor]) -> Tensor:
        """The converged end points (B, *S) of batch `number`, solved if they are not there, or are of another network.

        Args:
            sigma: where one evaluation proves that the network and its conditions are those of the kept end points.
        """
        if self.ends is None:
            return solve()
        path = self.ends / f"end-{number}-{len(noise)}.safetensors"
        level = torch.tensor(sigma, dtype=torch.float64, device=coefficient_device(noise.device))
        probe = denoiser(noise * sigma, level).cpu()
        end = self._read_end(path, probe)
        if end is None:
            end = solve()
            write_atomically(path, save({"end": end.cpu().contiguous(), "probe": probe.contiguous()}))
        return end.to(noise.device)

    def _read_end(self, path: Path, probe: Tensor) -> Tensor | None:
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                end, before = file.get_tensor("end"), file.get_tensor("probe")
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): solving it again", path, error)
            return None
        if before.shape == probe.shape and torch.allclose(before, probe, rtol=1e-3, atol=1e-3):
            return end
        log.warning("%s is of another network under the same name: measuring anew", path)
        self._forget()
        return None

    def _forget(self) -> None:
        """Drops the cells of all comparisons that share the end points: they are of the other network, too."""
        self.cells = {}
        assert self.ends is not None, "cells are forgotten for what a file of end points says"
        for path in self.ends.glob(f"*/{CELLS}"):
            path.unlink()

    def _write(self) -> None:
        if self.path is not None:
            cells = {key: cell and dataclasses.asdict(cell) for key, cell in self.cells.items()}
            text = json.dumps({"identity": self.identity, "cells": cells}, indent=1)
            write_atomically(self.path, (text + "\n").encode())

    def _announce(self, folder: Path) -> None:
        """Says what is there: cells to go on with, or only those of other options, and of which."""
        if self.cells:
            log.info("%d cells are measured already", len(self.cells))
            return
        for path in sorted(folder.glob(f"*/*/{CELLS}")):
            identity = _json(path).get("identity")  # none in a file that is damaged
            what = difference(identity, self.identity) if isinstance(identity, dict) else ""
            if what:
                log.info("%s are of other options (%s): measuring anew, beside them", path, what)


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _json(path: Path) -> dict[str, Any]:
    """The mapping in a file, empty where there is none that can be read."""
    try:
        value = json.loads(read_text(path, ValueError, MAX_TEXT))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _cells(path: Path) -> dict[str, Cell | None]:
    """The cells in a file, none where it is damaged."""
    if not path.exists():
        return {}
    try:
        return {key: None if cell is None else Cell.from_parts(cell) for key, cell in _json(path)["cells"].items()}
    except (KeyError, TypeError, AttributeError):
        log.warning("%s cannot be read: measuring its cells again", path)
        return {}
