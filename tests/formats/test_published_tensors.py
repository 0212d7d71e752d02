"""The reader of published tables on lying tensors: sizes, types and places that the stored bytes do not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.published_files import MAGIC, SYSTEM, VERSION, Storage, Tensor, inner, inner_stream, torch_zip
from helpers.published_refusal import R, refusal, stream_of, with_parameter, with_stream

HUGE = 2**60
KEY = "94012345678901"


def described(**lies: Any) -> bytes:  # noqa: ANN401 - whatever a file may claim
    return with_stream(inner_stream(R, **lies))


def storage(*entries: object) -> bytes:
    tail = np.int64(R.size).tobytes() + R.tobytes()
    return stream_of(MAGIC, VERSION, SYSTEM, Storage(entries), [KEY], tail=tail)


STREAMS: dict[str, Callable[[], bytes]] = {
    "DoubleStorage": lambda: described(kind=torch.DoubleStorage),
    "HalfStorage": lambda: described(kind=torch.HalfStorage),
    f"{HUGE} elements": lambda: described(numel=HUGE),
    "a huge integer elements": lambda: described(numel=2**900),
    f"{HUGE} declared": lambda: described(stored=HUGE),
    "-6 declared": lambda: described(stored=-6),
    "-1": lambda: described(numel=-1),
    "True": lambda: described(numel=True),
    "'meta'": lambda: described(location="meta"),
    "bytes; allowed is 4": lambda: with_stream(inner_stream(R) + b"\0"),
    "another header": lambda: stream_of(MAGIC + 1, VERSION, SYSTEM, 1, 1),
    "header; allowed": lambda: stream_of(MAGIC, VERSION, SYSTEM | {"protocol_version": 1000}, 1, 1),
    "other storages": lambda: stream_of(
        MAGIC,
        VERSION,
        SYSTEM,
        Storage(("storage", torch.FloatStorage, "1", "cpu", 6, None)),
        ["2"],
    ),
    "as a description": lambda: stream_of(MAGIC, VERSION, SYSTEM, ("storage", "1", "cpu", 6), ["1"]),
    "as a persistent id": lambda: stream_of(MAGIC, VERSION, SYSTEM, Storage(("storage", "1", "cpu", 6)), ["1"]),
    "a name without an end": lambda: with_stream(b"\x80\x02c" + b"a" * 300),
    "'view'": lambda: storage("storage", torch.FloatStorage, KEY, "cpu", 6, "view"),
    "'module'": lambda: storage("module", torch.FloatStorage, KEY, "cpu", 6, None),
    "zip format": lambda: with_stream(torch_zip()),
    "no pickle at byte 0": lambda: with_stream(b"\0" * 300),
    "the protocol of 2 bytes": lambda: with_stream(inner(MAGIC, VERSION, SYSTEM, "x" * 200) + b"\x80"),
    "NaN": lambda: with_parameter(Tensor(np.where(R == R[0, 0], np.float32("nan"), R), parameter=True)),
    "infinity": lambda: with_parameter(Tensor(np.where(R == R[0, 0], np.float32("inf"), R), parameter=True)),
}


@pytest.mark.parametrize("expected", STREAMS)
def test_hostile_storages(tmp_path: Path, expected: str) -> None:
    assert expected in refusal(STREAMS[expected](), tmp_path)


@pytest.mark.parametrize(
    "lies",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": True},
        {"stride": (2, 2)},
        {"stride": (-2, 1)},
        {"stride": (2, 1, 1)},
        {"stride": (1, 3)},
        {"size": (4, 2)},
        {"size": (2, 2)},
        {"size": (-3, 2)},
        {"size": (0, 2)},
        {"size": (3.0, 2)},
        {"size": (6,), "stride": (1,)},
        {"size": (1, 3, 2), "stride": (6, 2, 1)},
        {"size": (2**31 - 1, 2**31 - 1), "stride": (0, 0)},
        {"size": (2**31 - 1,) * 8, "stride": (0,) * 8},
        {"size": (1,) * 9, "stride": (1,) * 9},
        {"size": [3, 2]},
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path: Path, lies: dict[str, Any]) -> None:
    refusal(with_parameter(Tensor(R, parameter=True, **lies)), tmp_path)
