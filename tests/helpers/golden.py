"""Loads `tests/golden`: trajectories of the published method and the tables they were made with (see its README)."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parents[1] / "golden"
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """One row of one recorded run.

    Args:
        net: name of the denoiser, a key of `denoisers()`.
        table: a key of `tables()`, or None for hand-made solvers.
        row: which row of `noise` it started from, and its class row % 5 where the net has classes.
        sigmas: (N+1,).
        states: (N+1, 3, 8, 8), the start included; one more, at sigma 0, where options["denoise_to_zero"].
    """

    id: str
    solver: str
    net: str
    schedule: str
    rho: float
    sigma_min: float
    sigma_max: float
    num_points_in_time: int
    afs: bool
    order: int | None
    options: dict[str, Any]
    table: str | None
    batch: int
    row: int
    sequential_calls_seen: int
    rmse_to_exact: float
    exact_key: str
    sigmas: Array
    states: Array

    @property
    def noise(self) -> Array:
        """(1, 3, 8, 8), the start noise of this row."""
        return noise()[self.row : self.row + 1]

    @property
    def exact(self) -> Array:
        """(3, 8, 8), where the exact flow ends."""
        return exact_ends()[self.exact_key][self.row]


@functools.cache
def _record() -> dict[str, Any]:
    return json.loads((FOLDER / "cases.json").read_text())


def denoisers() -> dict[str, str]:
    """Name -> description of each denoiser."""
    return _record()["denoisers"]


@functools.cache
def cases() -> list[Case]:
    """All cases, in the order of the file."""
    out, sigma_at, state_at = [], 0, 0
    with np.load(FOLDER / "states.npz") as file:
        sigmas, states, index = file["sigmas"], file["states"], file["index"]
    for entry in _record()["cases"]:
        points = entry["num_points_in_time"]
        later = points - 1 + int(entry["options"]["denoise_to_zero"])
        grid = _frozen(sigmas[sigma_at : sigma_at + points])
        start = noise()[entry["row"]] * grid[0]
        path = np.stack([start, *states[index[state_at : state_at + later]]])
        sigma_at, state_at = sigma_at + points, state_at + later
        out.append(Case(**entry, sigmas=grid, states=_frozen(path)))
    assert (sigma_at, state_at) == (len(sigmas), len(index))
    return out


@functools.cache
def noise() -> Array:
    """(4, 3, 8, 8) unit noise."""
    return _frozen(np.load(FOLDER / "noise.npy"))


@functools.cache
def mixture() -> dict[str, NDArray[Any]]:
    """The exact denoiser: mu (10, 3, 8, 8), s (10,), w (10,), cond_components, class_masks (5, 10) and both acp_*."""
    with np.load(FOLDER / "mixture.npz") as file:
        return {k: _frozen(file[k]) for k in file.files}


@functools.cache
def exact_ends() -> dict[str, Array]:
    """exact_key -> (4, 3, 8, 8), the end points of the exact flow."""
    with np.load(FOLDER / "exact_ends.npz") as file:
        return {k: _frozen(file[k]) for k in file.files}


@functools.cache
def tables() -> dict[str, dict[str, Any]]:
    """Name -> raw, effective (r, weight, scale_dir, scale_time), metadata and training options, as nested lists."""
    return {table["name"]: table for table in json.loads((FOLDER / "tables.json").read_text())}


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
