"""The reader of published tables on hostile archives: no object is unpickled, no declared size is believed."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import published_files as files
from helpers.published_files import archive
from helpers.published_refusal import TABLE, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from epd.formats.published import PublishedTableError, read_published

RAW: dict[str, Any] = {k: np.array(v, np.float32) for k, v in TABLE["raw"].items()}
OPTIONS: dict[str, Any] = {"scale_dir": 0.05, "scale_time": 0.2}
VALID = archive(**RAW, **OPTIONS, metadata='{"afs": true}')
NODES, WEIGHTS = np.array(TABLE["effective"]["r"]), np.array(TABLE["effective"]["weight"])


@pytest.fixture(autouse=True)
def text_codec(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Python loads the codec of old zip names on first use, which is not the file's doing."""
    "a".encode("cp437")


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return out.getvalue()


def npy(array: Any, header: bytes | None = None) -> bytes:  # noqa: ANN401 - whatever numpy can write
    out = io.BytesIO()
    np.save(out, array)
    data = out.getvalue()
    if header is None:
        return data
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data[-array.nbytes :]


def headed(text: str) -> bytes:
    return zipped({"r_params.npy": npy(RAW["r_params"], text.encode() + b"\n")})


def twice() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            file.writestr("nodes.npy", npy(NODES))
    return out.getvalue()


class Command:
    """What runs when an object array is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch canary",)


def without(name: str) -> dict[str, Any]:
    return {k: v for k, v in RAW.items() if k != name}


HOSTILE: list[tuple[str, Callable[[], bytes]]] = [
    ("'|O'", lambda: archive(**without("r_params"), r_params=np.array([[Command()]]))),
    ("when unpacked", lambda: zipped({"nodes.npy": npy(np.zeros(5_000_000, np.float32))})),
    ("an archive of", lambda: zipped({"nodes.npy": npy(np.zeros(600_000))}, zipfile.ZIP_STORED)),
    ("65 entries", lambda: zipped({f"a{i}.npy": b"" for i in range(65)})),
    ("2 entries, 1", twice),
    ("of type 14", lambda: zipped({"nodes.npy": npy(NODES)}, zipfile.ZIP_LZMA)),
    ("'nodes.txt'", lambda: zipped({"nodes.txt": b""})),
    ("torch.save", lambda: zipped({"archive/data.pkl": b""})),
    ("header b''", lambda: zipped({"nodes.npy": b""})),
    ("the header", lambda: headed("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 2), }")),
    ("of shape (4, 2)", lambda: headed("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2), }")),
    (
        "of shape (999999999, 999999999)",
        lambda: headed("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999999), }"),
    ),
    ("the header", lambda: headed("{'descr': '<f4', 'fortran_order': False, 'shape': 3}")),
    ("__import__", lambda: headed("__import__('os').system('touch canary')")),
    ("'fortran_order': True", lambda: archive(nodes=np.asfortranarray(NODES), weights=WEIGHTS)),
    ("the header", lambda: archive(nodes=NODES[None], weights=WEIGHTS)),
    ("nodes' of int64", lambda: archive(nodes=np.ones((3, 2), np.int64), weights=WEIGHTS)),
    ("'other' of float64", lambda: archive(nodes=NODES, weights=WEIGHTS, other=NODES)),
    ("'scale_dir' of float64", lambda: archive(**RAW, scale_dir=NODES)),
    ("two names", lambda: archive(nodes=NODES, r=NODES, weights=WEIGHTS)),
    ("no weights", lambda: archive(nodes=NODES)),
    ("no nodes", lambda: archive(weights=WEIGHTS)),
    ("no nodes;", lambda: zipped({})),
    ("without weight_s", lambda: archive(**without("weight_s"))),
    ("weights of shape (2, 2)", lambda: archive(nodes=NODES, weights=WEIGHTS[:2])),
    ("sigmas of shape (3,)", lambda: archive(nodes=NODES, weights=WEIGHTS, sigmas=[3.0, 2.0, 1.0])),
    ("nodes of shape (2,)", lambda: archive(nodes=NODES[0], weights=WEIGHTS[0])),
    ("nodes of shape (0, 2)", lambda: archive(nodes=NODES[:0], weights=WEIGHTS[:0])),
    ("nodes with NaN", lambda: archive(nodes=NODES * np.nan, weights=WEIGHTS)),
    ("scale_dir = None", lambda: archive(**RAW, scale_time=0.2)),
    ("num_steps 9", lambda: archive(**RAW, **OPTIONS, num_steps=9)),
    ("fcn = 1", lambda: archive(**RAW, **OPTIONS, fcn=1)),
    ("1.5 as metadata", lambda: archive(nodes=NODES, weights=WEIGHTS, metadata=1.5)),
    ("metadata '{'", lambda: archive(nodes=NODES, weights=WEIGHTS, metadata="{")),
    ("metadata '[1]'", lambda: archive(nodes=NODES, weights=WEIGHTS, metadata="[1]")),
    ("metadata '[[[", lambda: archive(nodes=NODES, weights=WEIGHTS, metadata="[" * 100_000)),
    ("NaN stands for a number", lambda: archive(nodes=NODES, weights=WEIGHTS, metadata='{"a": NaN}')),
    ("1e999 stands for a number", lambda: archive(nodes=NODES, weights=WEIGHTS, metadata='{"a": 1e999}')),
    ('metadata \'{"a": 9', lambda: archive(nodes=NODES, weights=WEIGHTS, metadata='{"a": ' + "9" * 5000 + "}")),
    ("of shape (1,)", lambda: archive(nodes=NODES, weights=WEIGHTS, notes=["text"])),
    ("num_points 3", lambda: archive(nodes=NODES, weights=WEIGHTS, num_points=3)),
    ("(UnicodeDecodeError)", lambda: zipped({"a.npy": npy(np.array("a")).replace(b"a\0\0\0", b"\xff" * 4)})),
]


@pytest.mark.parametrize(("expected", "build"), HOSTILE)
def test_hostile_archives(tmp_path: Path, expected: str, build: Callable[[], bytes]) -> None:
    assert expected in refusal(build(), tmp_path)


def test_encrypted_and_truncated(tmp_path: Path) -> None:
    encrypted = bytearray(VALID)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(signature) + flags] |= 1
    assert "RuntimeError" in refusal(bytes(encrypted), tmp_path)
    for length in range(0, len(VALID), 7):
        refusal(VALID[:length], tmp_path)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_archives(tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for position, value in edits:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    path.write_bytes(data)
    try:
        found = read_published(path)
    except PublishedTableError:
        return
    for key, value in RAW.items():  # the archive's checksums notice the rest
        np.testing.assert_array_equal(found.raw.get(key, value), value)


def test_our_archives_are_read(tmp_path: Path) -> None:
    (tmp_path / "table.npz").write_bytes(VALID)
    assert read_published(tmp_path / "table.npz").metadata == {**OPTIONS, "afs": True}
    assert files.archive(**RAW, **OPTIONS, metadata='{"afs": true}')[:2] == b"PK"
