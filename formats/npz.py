"""A .npz written in parts: arrays larger than memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from .files import write_streamed


def write_npz(path: Path, count: int, arrays: Mapping[str, Iterable[np.ndarray]]) -> None:
    """Writes arrays of `count` rows, each given in parts, as `numpy.savez` writes whole ones, and atomically.

    Raises:
        ValueError: where the parts of an array are not `count` rows together.
        OSError: (a full disk, no permission) with the old file intact.
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, parts in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_rows(member, name, count, parts)

    write_streamed(path, write)


def _write_rows(member: IO[bytes], name: str, count: int, parts: Iterable[np.ndarray]) -> None:
    written = 0
    for part in parts:
        if not written:
            header = np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(part))
            np.lib.format.write_array_header_1_0(member, {**header, "shape": (count, *part.shape[1:])})
        member.write(part.tobytes())
        written += len(part)
    if written != count:
        raise ValueError(f"{name}: {written} rows came, {count} were announced")
