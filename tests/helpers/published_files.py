"""Writes files of the published shapes, valid and hostile ones: nobody else's file is needed to test the reader."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch._utils
from numpy.typing import NDArray
from torch import nn

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
ORDER = ("r_params", "scale_dir_params", "scale_time_params", "weight_s")
SOURCE = "import os\n" + "# the source of a network, which the published loader executes\n" * 5


@dataclass(frozen=True)
class Tensor:
    """Pickles as a torch tensor (or Parameter) does, with any part replaced by a lie."""

    values: NDArray[Any]
    parameter: bool = False
    location: str = "cpu"
    key: str = "94012345678901"
    offset: int = 0
    size: tuple[Any, ...] | None = None
    stride: tuple[Any, ...] | None = None
    stream: bytes | None = None


@dataclass(frozen=True)
class Persistent:
    """Pickles as an object of torch_utils.persistence."""

    meta: Any


@dataclass(frozen=True)
class Call:
    """Pickles as a call of any function: what an attacker writes."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments, *([] if self.state is None else [self.state])


@dataclass(frozen=True)
class Storage:
    """The persistent id of an inner stream."""

    entries: tuple[Any, ...]


def _function(module: str, name: str) -> Callable[..., Any]:
    def function(*_: object) -> None:
        raise AssertionError("nothing of a file may run")

    function.__module__, function.__name__, function.__qualname__ = module, name, name
    return function


SAMPLERS = {n: _function("solvers", f"{n}_sampler") for n in ("epd", "ipndm", "heun", "dpm")}
RECONSTRUCT = _function("torch_utils.persistence", "_reconstruct_persistent_obj")


@contextlib.contextmanager
def foreign_modules() -> Iterator[None]:
    """The modules that only the writer of a file needs; they are gone before anybody reads it."""
    modules = {name: ModuleType(name) for name in ("solvers", "torch_utils", "torch_utils.persistence")}
    for name, sampler in SAMPLERS.items():
        setattr(modules["solvers"], f"{name}_sampler", sampler)
    setattr(modules["torch_utils.persistence"], "_reconstruct_persistent_obj", RECONSTRUCT)  # noqa: B010
    with mock.patch.dict(sys.modules, modules):
        yield


class _Outer(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 - the signature of pickle
        if isinstance(obj, Persistent):
            return RECONSTRUCT, (obj.meta,)
        if not isinstance(obj, Tensor):
            return NotImplemented
        if obj.parameter:
            return torch._utils._rebuild_parameter, (replace(obj, parameter=False), True, OrderedDict())
        stream = inner_stream(obj.values, obj.key, obj.location) if obj.stream is None else obj.stream
        size = obj.values.shape if obj.size is None else obj.size
        stride = tuple(s // 4 for s in obj.values.strides) if obj.stride is None else obj.stride
        storage = Call(torch.storage._load_from_bytes, (stream,))
        return torch._utils._rebuild_tensor_v2, (storage, obj.offset, size, stride, False, OrderedDict())


class _Inner(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:  # noqa: ANN401 - the signature of pickle
        return obj.entries if isinstance(obj, Storage) else None


def inner(*objects: object) -> bytes:
    """The pickles of an inner stream, one after another."""
    out = io.BytesIO()
    for obj in objects:
        _Inner(out, protocol=2).dump(obj)
    return out.getvalue()


def inner_stream(
    values: NDArray[Any],
    key: str = "94012345678901",
    location: str = "cpu",
    kind: type = torch.FloatStorage,
    numel: int | None = None,
    stored: int | None = None,
) -> bytes:
    """What torch.save writes for one storage in its legacy format, `numel` and `stored` as they should not be."""
    described = Storage(("storage", kind, key, location, values.size if numel is None else numel, None))
    count = np.int64(values.size if stored is None else stored).tobytes()
    return inner(MAGIC, VERSION, SYSTEM, described, [key]) + count + values.tobytes()


def pickled(top: object, protocol: int = 4) -> bytes:
    """The outer pickle of any object."""
    out = io.BytesIO()
    with foreign_modules():
        _Outer(out, protocol).dump(top)
    return out.getvalue()


@dataclass
class Model:
    """A predictor, with the state that the reference writes; change anything before `meta()`.

    Args:
        raw: the four parameters, (N, K).
        attributes: the plain attributes.
    """

    raw: dict[str, NDArray[Any]]
    attributes: dict[str, Any]
    state: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.state = dict(nn.Module().__dict__)
        keys = (f"9464256{i:07}" for i in range(4))
        self.state["_parameters"] = {k: Tensor(self.raw[k], True, key=key) for k, key in zip(ORDER, keys, strict=True)}
        self.state["_modules"] = {"sigmoid": nn.Sigmoid(), "softmax": nn.Softmax(dim=-1)}
        self.state |= self.attributes | {"_init_args": (), "_init_kwargs": dict(self.attributes)}

    def meta(self, class_name: str = "EPD_predictor") -> dict[str, Any]:
        return {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": class_name,
            "state": self.state,
        }

    def data(self, loss: dict[str, Any] | None = None) -> bytes:
        top: dict[str, Any] = {"model": Persistent(self.meta())}
        return pickled(top if loss is None else top | {"loss_fn": Persistent(loss)})


def model_of(table: dict[str, Any]) -> Model:
    """The model of one golden table."""
    raw = {k: np.array(v, np.float32) for k, v in table["raw"].items()}
    return Model(raw, dict(table["metadata"]))


def loss_meta(steps: int, teacher: str = "heun", student: str = "ipndm") -> dict[str, Any]:
    """A loss_fn: samplers by reference, the schedule and two history tensors on a GPU."""
    history = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    options = {"num_steps": steps, "solver_stu": SAMPLERS[student], "solver_tea": SAMPLERS[teacher], "M": 3}
    options |= {
        "schedule_type": "time_uniform",
        "schedule_rho": 1.0,
        "afs": True,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
    }
    state: dict[str, Any] = options | {"num_steps_teacher": 3 * steps, "tea_slice": [3 * i for i in range(steps)]}
    state["t_steps"] = Tensor(np.geomspace(80, 0.002, steps).astype(np.float32), location="cuda:0")
    state["buffer_model"] = [
        Tensor(history, location="cuda:0", key="94642560000007"),
        Tensor(history + 1, location="cuda:0", key="94642560000008"),
    ]
    state |= {"buffer_t": [], "lpips": None, "_init_args": (), "_init_kwargs": dict(options)}
    return {"type": "class", "version": 6, "module_src": SOURCE, "class_name": "EPD_loss", "state": state}


def unframed(data: bytes) -> bytes:
    """The same pickle without FRAME, whose length would be the first thing that is wrong with any changed file."""
    starts = [at for op, _, at in pickletools.genops(data) if op.name == "FRAME" and at is not None]
    for start in reversed(starts):
        data = data[:start] + data[start + 9 :]
    return data


def spliced(table: dict[str, Any], payload: bytes) -> bytes:
    """A valid file in which the value of one attribute is made by other opcodes, which have to push one object."""
    model = model_of(table)
    model.state["bomb"] = "the value"
    whole, value = unframed(model.data()), b"\x8c\x09the value\x94"
    assert whole.count(value) == 1
    return whole.replace(value, payload + b"\x94")


def archive(**arrays: object) -> bytes:
    """A `.npz` as numpy writes it."""
    out = io.BytesIO()
    np.savez(out, **{k: np.asarray(v) for k, v in arrays.items()})  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def torch_zip() -> bytes:
    """What torch.save writes today."""
    out = io.BytesIO()
    torch.save(torch.ones(3, 2), out)
    return out.getvalue()
