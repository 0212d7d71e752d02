"""The reader of published tables on hostile pickles: one PublishedTableError each, and nothing else happens."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._utils
from helpers import published_files as files
from helpers.published_files import Call, Persistent, Tensor, pickled
from helpers.published_refusal import TABLE, R, model, refusal, stream_of, with_attribute, with_parameter

from epd.formats.published import PublishedTableError, read_published

HUGE = 2**60


def test_the_attacks_are_real(tmp_path: Path) -> None:
    attack = pickled({"model": Call(os.system, (f"touch {tmp_path / 'canary'}",))})
    pickle.loads(attack)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "place",
    [
        lambda attack: pickled(attack),
        lambda attack: pickled({"model": attack}),
        lambda attack: pickled({"model": Persistent(attack)}),
        lambda attack: pickled({"model": Persistent({**model().meta(), "type": attack})}),
        lambda attack: model().data({**files.loss_meta(4), "state": attack}),
        lambda attack: with_attribute(attack),
        lambda attack: with_parameter(attack),
        lambda attack: stream_of(attack),
        lambda attack: stream_of(files.MAGIC, files.VERSION, files.SYSTEM, attack),
        lambda attack: stream_of(files.MAGIC, files.VERSION, files.SYSTEM, files.Storage((attack,) * 6), ["1"]),
    ],
)
def test_a_command_is_never_run(tmp_path: Path, place: Callable[[Call], bytes]) -> None:
    message = refusal(place(Call(os.system, (f"touch {tmp_path / 'canary'}",))), tmp_path)
    assert "'system'" in message or "REDUCE" in message or "GLOBAL" in message


@pytest.mark.parametrize(
    "attack",
    [Call(eval, ("1",)), Call(exec, ("",)), Call(getattr, ({}, "get")), Call(__import__, ("this",)), Call(print, ())]
    + [os.system, torch.load, torch.nn.Linear, np.float64, torch.nn.ReLU(), torch.float32, complex(1, 2), {1}],
)
def test_no_other_global(tmp_path: Path, attack: object) -> None:
    assert "found the global" in refusal(with_attribute(attack), tmp_path) or isinstance(attack, set)


@pytest.mark.parametrize(
    "attack",
    [
        Call(OrderedDict, ([("a", 1)],)),
        Call(torch._utils._rebuild_parameter, (1, True, {})),
        Call(torch._utils._rebuild_tensor_v2, (R.tobytes(), 0, (1,), (1,), False, {})),
        Call(torch.storage._load_from_bytes, ("text",)),
        Call(torch.storage._load_from_bytes, (b"",) * 2),
        Call(files.SAMPLERS["epd"], (1,)),
        Call(torch.nn.Sigmoid, ()),
        Call(files.SAMPLERS["epd"], (), {"__code__": 1}),
        Call(OrderedDict, (), {"__class__": 1}),
        Call(OrderedDict, (), (None, {"__class__": 1})),
        [Call(OrderedDict) for _ in range(2000)],
    ],
)
def test_allowed_globals_in_wrong_uses(tmp_path: Path, attack: object) -> None:
    refusal(with_attribute(attack), tmp_path)


SIGMOID = b"\x8c\x1btorch.nn.modules.activation\x8c\x07Sigmoid\x93"
SPLICES = {
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", HUGE),
    "BINBYTES8": b"\x8e" + struct.pack("<Q", HUGE),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", HUGE),
    "BINUNICODE of": b"X" + struct.pack("<I", 2**32 - 1),
    "BINBYTES of": b"B" + struct.pack("<I", 2**32 - 1),
    "frame of": b"\x95" + struct.pack("<Q", HUGE) + b"N",
    "LONG_BINGET": b"j" + struct.pack("<I", 0),
    "LONG_BINPUT": b"Nr" + struct.pack("<I", 2**32 - 1),
    "LONG4": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "LONG ": b"L" + b"9" * 100 + b"L\n",
    "GLOBAL": b"cos\nsystem\n",
    "INST": b"(ios\nsystem\n",
    "OBJ": b"(o",
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pkey\n",
    "BINPERSID": b"NQ",
    "NEWOBJ_EX": SIGMOID + b")}\x92",
    "NEXT_BUFFER": b"\x97",
    "ADDITEMS": b"\x8f(N\x90",
    "POP ": b"NN0",
    "DUP": b"N2",
    "PROTO": b"\x80\x05N",
    "0xff": b"\xffN",
    "reference to object 250": b"h\xfa",
    "on nothing": b"\x87" * 300,
    "without a MARK": b"t" * 50,
    "'k' twice": b"}(\x8c\x01kN\x8c\x01kNu",
    "a tuple as a key": b"})Ns",
    "3 keys and values": b"}(NNNu",
    "set on a list": b"](\x8c\x01kNu",
    "appended to a dict": b"}Na",
    "call of 'text'": b"\x8c\x04text)R",
    "object of 'text'": b"\x8c\x04text)\x81",
    "Sigmoid; allowed": SIGMOID + b"N\x85\x81",
    "built with a tuple": SIGMOID + b")\x81N}\x8c\x01aNs\x86b",
    "Sigmoid built with a dict": SIGMOID + b"}b",
    "as text": b"\x8c\x02\xff\xfe",
    "nan": b"G" + struct.pack(">d", float("nan")),
    "-inf": b"G" + struct.pack(">d", float("-inf")),
    "b'raw'": b"B\x03\x00\x00\x00raw",
    "more than 100000 operations": b")" + b"\x85" * 200_000,
    "too deep": b")" + b"\x85" * 90_000,
    "too deep or": b"]" * 40_000 + b"a" * 39_999,
    "or too large": b"]" + b"(" + b"K\x01" * 30_000 + b"e",
}


@pytest.mark.parametrize("expected", SPLICES)
def test_hostile_opcodes(tmp_path: Path, expected: str) -> None:
    assert expected in refusal(files.spliced(TABLE, SPLICES[expected]), tmp_path) + " "


def test_cycles_and_shared_lists_end(tmp_path: Path) -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    assert "too deep" in refusal(with_attribute(cycle), tmp_path)
    shared: object = []
    for _ in range(14):  # 2^14 paths to the innermost, times the two lists that hold it
        shared = [shared, shared]
    assert "too large" in refusal(with_attribute([shared, shared]), tmp_path)
    key: object = ()
    for _ in range(14):
        key = (key, key)
    assert "as a key" in refusal(with_attribute({key: 1}), tmp_path)


def changed(meta: dict[str, Any] | None = None, **state: object) -> bytes:
    hostile = model()
    hostile.state |= state
    return pickled({"model": Persistent(hostile.meta() | (meta or {}))})


def with_parameters(**parameters: object) -> bytes:
    return changed(_parameters=model().state["_parameters"] | parameters)


@pytest.mark.parametrize(
    "build",
    [
        lambda: pickled([]),
        lambda: pickled(None),
        lambda: pickled({}),
        lambda: pickled({"ema": 1}),
        lambda: pickled({"model": 1}),
        lambda: pickled({"model": Persistent(model().meta()), "more": 1}),
        lambda: pickled({"model": Persistent({})}),
        lambda: pickled({"model": Persistent(model().meta())}, protocol=2),
        lambda: pickled({"model": Persistent(model().meta())}, protocol=5),
        lambda: model().data() + b"\0",
        lambda: model().data()[:-1] + b"N.",
        lambda: model().data({"type": "class"}),
        lambda: model().data(model().meta()),
        lambda: model().data({**files.loss_meta(4), "state": {"t_steps": Tensor(R)}}),
        lambda: model().data({**files.loss_meta(4), "state": {"t_steps": [1.0]}}),
        lambda: model().data(files.loss_meta(5)),
        lambda: changed({"version": 5}),
        lambda: changed({"type": "function"}),
        lambda: changed({"class_name": "EPD_loss"}),
        lambda: changed({"module_src": 1}),
        lambda: changed({"state": [1]}),
        lambda: changed(num_steps=5),
        lambda: changed(num_steps="4"),
        lambda: changed(num_points=3),
        lambda: changed(num_points=2.0),
        lambda: changed(fcn=1),
        lambda: changed(scale_dir=None),
        lambda: changed(scale_dir=True),
        lambda: changed(scale_time=1e300),
        lambda: changed(class_name="x"),
        lambda: changed(loss_fn={}),
        lambda: changed(_parameters={}),
        lambda: changed(_parameters=[]),
        lambda: with_parameters(more=Tensor(R, parameter=True)),
        lambda: with_parameters(weight_s=None),
        lambda: with_parameters(weight_s=Tensor(R[:2].copy(), parameter=True)),
        lambda: with_parameters(r_params=Tensor(R.astype(np.float64), parameter=True)),
    ],
)
def test_objects_that_are_no_table(tmp_path: Path, build: Callable[[], bytes]) -> None:
    refusal(build(), tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x04", b"\x80\x04.", b"{}", b"\x80\x04N", b"\x80\x04(N.", b"\xff" * 100]
)
def test_files_that_are_no_pickle(tmp_path: Path, data: bytes) -> None:
    refusal(data, tmp_path)


def test_torch_saves_are_named(tmp_path: Path) -> None:
    assert "a zip made by torch.save" in refusal(files.torch_zip(), tmp_path)
    refusal(files.inner_stream(R), tmp_path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait forever
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 * 2**30)
    expected = {"pipe": "regular file", "sparse": f"{3 * 2**30} bytes", ".": "regular file", "none": "cannot be read"}
    for name, found in expected.items():
        with pytest.raises(PublishedTableError, match=found):
            read_published(tmp_path / name)
