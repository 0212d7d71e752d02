"""Reads `.npz` archives of plain numbers and text, with every declared size checked before anything is allocated."""

from __future__ import annotations

import codecs
import io
import math
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .json_text import parse_json
from .pickle_machine import PublishedTableError, fault, shown
from .published_contents import JSON, RAW, Contents, plain_values

MAX_ARCHIVE = 4 * 2**20  # a table has a few kB; more only serves archives with a million entries
MAX_MEMBER = 16 * 2**20
MAX_MEMBERS = 64
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, LookupError, ValueError)
DAMAGE += (OverflowError, MemoryError)  # what zipfile raises on hostile archives, NotImplementedError among them
EFFECTIVE = {"nodes": "nodes", "weights": "weights", "slope_scale": "slope_scale", "sigma_scale": "sigma_scale"}
EFFECTIVE |= {"r": "nodes", "weight": "weights", "scale_dir": "slope_scale", "scale_time": "sigma_scale"}

_HEADER = re.compile(
    rb"\{'descr': '(<f4|<f8|<i4|<i8|\|b1|<U\d{1,8})', 'fortran_order': False, "
    rb"'shape': \((|\d{1,9},|\d{1,9}, \d{1,9})\), \} *\n"
)

codecs.lookup("utf-32-le")  # Python loads codecs when they are first used: now, not while a foreign file is open


def load(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an archive by name, without ".npy".

    Raises:
        PublishedTableError: for damage, other entries than .npy, objects, and sizes that lie.
    """
    if len(data) > MAX_ARCHIVE:
        raise fault(f"an archive of {len(data)} bytes", f"at most {MAX_ARCHIVE}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check(archive.infolist())
            return {info.filename[:-4]: _array(info.filename, archive.read(info)) for info in archive.infolist()}
    except PublishedTableError:
        raise
    except DAMAGE as error:
        raise fault(f"a damaged or unusual archive ({type(error).__name__})", "what numpy.savez writes") from error


def _check(entries: list[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in entries]
    if any(name.endswith("data.pkl") for name in names):
        raise fault("a zip made by torch.save, with a pickle inside", "a .pkl of the published format, or a .npz")
    if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
        raise fault(f"{len(names)} entries, {len(set(names))} of them different", f"at most {MAX_MEMBERS}, each once")
    for info in entries:
        if not info.filename.endswith(".npy") or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise fault(f"the entry {shown(info.filename)} of type {info.compress_type}", ".npy, stored or deflated")
    total = sum(info.file_size for info in entries)
    if total > MAX_MEMBER:
        raise fault(f"entries of {total} bytes when unpacked", f"at most {MAX_MEMBER} in total")


def _array(name: str, data: bytes) -> NDArray[Any]:
    """One .npy, its header read by a regular expression: numpy's own reader evaluates it as Python literals."""
    length = int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10 : 10 + length])
    if data[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise fault(
            f"{shown(name)} with the header {shown(data[:80])}", "numpy 1.0: numbers or text, at most 2-D, C order"
        )
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(n) for n in header[2].replace(b",", b" ").split())
    body = data[10 + length :]
    if math.prod(shape) * dtype.itemsize != len(body) or (dtype.kind == "U" and shape):
        raise fault(f"{shown(name)} of shape {shape}, {dtype}, in {len(body)} bytes", "as many bytes as that takes")
    if dtype.kind == "U":  # numpy takes any 4 bytes for a character, and fails later with SystemError
        return np.array(body.decode("utf-32-le").rstrip("\0"))
    return np.frombuffer(body, dtype).reshape(shape) if body else np.zeros(shape, dtype)


def contents(arrays: dict[str, NDArray[Any]]) -> Contents:
    """What the arrays of an archive say: raw parameters if `r_params` is among them, else effective values.

    Raises:
        PublishedTableError: for unknown names and anything but floats.
    """
    scalars = {k: v.item() for k, v in arrays.items() if v.ndim == 0}
    numbers = {k: v for k, v in arrays.items() if v.ndim}
    metadata = plain_values({**_json(scalars.pop("metadata", "{}")), **scalars})
    raw = "r_params" in numbers
    allowed = (*(RAW if raw else EFFECTIVE), "sigmas")
    for name, value in numbers.items():
        if name not in allowed or value.dtype.kind != "f":
            raise fault(f"the array {shown(name)} of {value.dtype}", f"floats named {', '.join(allowed)}")
    sigmas = numbers.pop("sigmas", None)
    if raw:
        return Contents(numbers, {}, metadata, sigmas)
    effective = {EFFECTIVE[k]: v for k, v in numbers.items()}
    if len(effective) != len(numbers):
        raise fault(f"two names for one thing among {', '.join(numbers)}", "one name for each")
    return Contents({}, effective, metadata, sigmas)


def _json(text: object) -> dict[str, JSON]:
    if not isinstance(text, str):
        raise fault(f"{shown(text)} as metadata", "a JSON object as text")
    try:
        data = parse_json(text, ValueError, "it")
    except ValueError as error:
        raise fault(f"the metadata {shown(text)} ({error})", "a JSON object as text") from error
    if not isinstance(data, dict):
        raise fault(f"the metadata {shown(text)}", "a JSON object as text")
    return data
