"""Statistics of features on disk: EDM's `.npz`, and our own safetensors, which hold features, too."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..formats.files import require_regular, write_atomically
from .metrics import Moments

FORMAT = "epd-reference"
MAX_BYTES = 2**32  # 2048 features take 32 MiB, and 10,000 kept rows of them 78 MiB more
ASYMMETRY = 1e-6  # of the largest entry: what is stored in float32 is less symmetric than float64


class ReferenceError(ValueError):
    """A reference that cannot be used: which, what is wrong, and the remedy."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What samples are compared with.

    Args:
        moments: of all features.
        count: how many there were; None where the file does not say.
        features: (M, F) float32, a random choice of them, for KID, precision and recall; None where there are none.
        probe: (F,), what the extractor makes of a fixed picture; None where the file does not say.
        picture: (3, H, W) of each picture, and of the fixed one; None likewise.
    """

    moments: Moments
    count: int | None = None
    features: Tensor | None = None
    probe: Tensor | None = None
    picture: tuple[int, ...] | None = None


def read_npz(path: Path) -> Statistics:
    """The statistics in a `.npz` with `mu` (F,) and `sigma` (F, F), as EDM publishes them; nothing is unpickled.

    Raises:
        ReferenceError: for other arrays, objects, sizes that lie, or numbers that are no mean and covariance.
    """
    require_regular(path, ReferenceError, MAX_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if not {"mu.npy", "sigma.npy"} <= names:
                raise ReferenceError(f"{path} holds {sorted(names)[:8]}: needed are the arrays mu and sigma")
            mean, covariance = (_array(path, archive, f"{name}.npy") for name in ("mu", "sigma"))
    except ReferenceError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ReferenceError(f"{path} is no .npz that can be read ({text}): download it again") from error
    return Statistics(_moments(path, torch.tensor(mean), torch.tensor(covariance)))


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array of numbers, of exactly the bytes that its header declares."""
    info = archive.getinfo(name)
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.kind != "f":  # objects above all, which are pickles
            raise ReferenceError(f"{path}: {name} is of {dtype}, needed are floating point numbers; nothing was opened")
        size = math.prod(shape) * dtype.itemsize
        if info.file_size > MAX_BYTES or size != info.file_size - file.tell():
            raise ReferenceError(f"{path}: {name} declares {shape}, {dtype}, in {info.file_size} bytes: it is damaged")
        data = np.frombuffer(file.read(size), dtype)
    return data.reshape(shape, order="F" if fortran else "C").astype(np.float64)


def read_own(path: Path) -> Statistics:
    """The statistics that `write_statistics` wrote.

    Raises:
        ReferenceError: for any other file.
    """
    require_regular(path, ReferenceError, MAX_BYTES)
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if told.get("format") != FORMAT or not {"mu", "sigma", "features", "probe"} <= set(tensors):
            raise ReferenceError(f"{path} is not what --save-reference writes: it holds {sorted(tensors)[:8]}")
        count, picture = int(told["count"]), tuple(int(side) for side in told["picture"].split("x"))
    except ReferenceError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ReferenceError(f"{path} cannot be read ({error}): write it again with --save-reference") from error
    moments, features = _moments(path, tensors["mu"], tensors["sigma"]), tensors["features"].float()
    if features.ndim != 2 or features.shape[1] != len(moments.mean) or not bool(features.isfinite().all()):
        raise ReferenceError(f"{path}: features {tuple(features.shape)} must be finite, (M, {len(moments.mean)})")
    return Statistics(moments, count, features, tensors["probe"].float(), picture)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Writes what `read_own` reads; of statistics with features alone, as others are in a file already.

    Raises:
        ReferenceError: for statistics without features.
    """
    features, probe, picture = statistics.features, statistics.probe, statistics.picture
    if features is None or probe is None or picture is None:
        raise ReferenceError("only a reference of pictures can be saved: this one holds mean and covariance alone")
    moments = statistics.moments
    tensors = {"mu": moments.mean, "sigma": moments.covariance, "features": features, "probe": probe}
    told = {"format": FORMAT, "count": str(statistics.count), "picture": "x".join(map(str, picture))}
    write_atomically(path, save({name: value.contiguous() for name, value in tensors.items()}, told))


def _moments(path: Path, mean: Tensor, covariance: Tensor) -> Moments:
    mean, covariance = mean.double(), covariance.double()
    width = mean.numel()
    if mean.ndim != 1 or covariance.shape != (width, width) or width == 0:
        raise ReferenceError(
            f"{path}: mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} must be (F,) and (F, F)"
        )
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise ReferenceError(f"{path}: mu or sigma holds numbers that are not finite: make it again")
    apart = float((covariance - covariance.T).abs().max())
    if apart > ASYMMETRY * float(covariance.abs().max()) or bool((covariance.diagonal() < 0).any()):
        raise ReferenceError(f"{path}: sigma is no covariance: it is not symmetric, or has a negative variance")
    return Moments(mean, (covariance + covariance.T) / 2)
