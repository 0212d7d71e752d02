"""What a published EPD pickle means: an outer stream of plain objects, tensors in it as inner `torch.save` streams."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pickle_machine import Dialect, Machine, Name, fault, shown
from .published_contents import JSON, RAW, Contents, StoredTensor, plain_values

MAX_DIMENSIONS = 8
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch.save's legacy format
FLOAT = Name("torch", "FloatStorage")
SYSTEM = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}

INNER = Dialect(
    protocol=2,
    opcodes=frozenset(
        "NONE NEWTRUE BININT BININT1 BININT2 LONG1 BINUNICODE EMPTY_DICT EMPTY_LIST MARK TUPLE SETITEM SETITEMS APPEND"
        " APPENDS BINPUT BINGET GLOBAL BINPERSID STOP".split()
    ),
    globals=frozenset({FLOAT}),
)


def load(data: bytes) -> object:
    """The object of a whole outer pickle, made of dicts, lists, tuples, strings, numbers, Name, Inert and StoredTensor.

    Raises:
        PublishedTableError: for anything that published tables do not contain.
    """
    machine = Machine(data, OUTER)
    value = machine.run()
    if machine.end != len(data):
        raise fault(f"{len(data) - machine.end} bytes after the pickle", "one pickle and nothing after it")
    return value


def _arguments(values: tuple[object, ...], types: tuple[type, ...], what: str) -> tuple[Any, ...]:
    if tuple(map(type, values)) != types:
        got = ", ".join(type(v).__name__ for v in values[:8])
        raise fault(f"{what} called with ({got})", ", ".join(t.__name__ for t in types))
    return values


def _reconstruct(arguments: tuple[object, ...]) -> object:
    return _arguments(arguments, (dict,), "_reconstruct_persistent_obj")[0]


def _ordered_dict(arguments: tuple[object, ...]) -> object:
    _arguments(arguments, (), "OrderedDict")
    return {}


def _parameter(arguments: tuple[object, ...]) -> object:
    return _arguments(arguments, (StoredTensor, bool, dict), "_rebuild_parameter")[0]


def _tensor(arguments: tuple[object, ...]) -> object:
    types = (np.ndarray, int, tuple, tuple, bool, dict)
    storage, offset, size, stride = _arguments(arguments, types, "_rebuild_tensor_v2")[:4]
    size, stride = _naturals(size, "size"), _naturals(stride, "stride")
    if len(size) != len(stride) or offset < 0:
        raise fault(f"{len(size)} sizes, {len(stride)} strides and offset {offset}", "as many strides, and offset >= 0")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    total = math.prod(size)  # an exact integer; a stride of 0 would make any number of elements out of one
    if not 0 < total <= storage.size or last >= storage.size:
        raise fault(
            f"a tensor of {shown(total)} elements, the last at {shown(last)}", f"1 to {storage.size} in a storage"
        )
    return StoredTensor(storage, offset, size, stride)


def _naturals(value: tuple[object, ...], what: str) -> tuple[int, ...]:
    if len(value) > MAX_DIMENSIONS:
        raise fault(f"{len(value)} dimensions of a tensor", f"at most {MAX_DIMENSIONS}")
    out = tuple(n for n in value if type(n) is int and n >= 0)
    if len(out) != len(value):
        raise fault(f"the {what} ({', '.join(map(shown, value))}) of a tensor", "integers >= 0")
    return out


def _storage(arguments: tuple[object, ...]) -> object:
    """Decodes one storage that torch.save wrote in its legacy format: five pickles, a count, then the numbers."""
    data: bytes = _arguments(arguments, (bytes,), "_load_from_bytes")[0]
    if data[:2] == b"PK":
        raise fault("a tensor in torch.save's zip format", "torch.save's legacy format")
    machine, parts = Machine(data, INNER), []
    for _ in range(5):
        machine = Machine(data, INNER, machine.end)
        parts.append(machine.run())
    if parts[:3] != [MAGIC, VERSION, SYSTEM]:
        raise fault("a tensor stream with another header", "torch.save's legacy format 1001, little endian")
    key, numel = _description(parts[3])
    if parts[4] != [key]:
        raise fault("a tensor stream with other storages than described", f"the storage {shown(key)} alone")
    stored = machine.number("<q", "the number of elements")
    left = len(data) - machine.end
    if stored != numel or left != 4 * numel:
        raise fault(f"{shown(numel)} elements described, {stored} declared, {left} bytes", "4 bytes for each element")
    return np.frombuffer(data, "<f4", numel, machine.end)


def _description(value: object) -> tuple[str, int]:
    allowed = "('storage', torch.FloatStorage, key, cpu or cuda, number of elements, None)"
    if type(value) is not tuple or len(value) != 6:
        raise fault(f"{shown(value)} as a description of a storage", allowed)
    kind, dtype, key, location, numel, view = value
    placed = type(location) is str and (location == "cpu" or location.startswith("cuda"))
    plain = kind == "storage" and type(dtype) is Name and view is None and placed
    if not plain or type(key) is not str or type(numel) is not int or numel < 1:
        raise fault(f"({', '.join(map(shown, value))}) as a storage", allowed)
    return key, numel


_CALLS = {
    Name("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstruct,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch.storage", "_load_from_bytes"): _storage,
    Name("collections", "OrderedDict"): _ordered_dict,
}
_CLASSES = frozenset(Name("torch.nn.modules.activation", n) for n in ("Sigmoid", "Softmax"))
_MARKERS = frozenset(Name("solvers", f"{n}_sampler") for n in ("epd", "ipndm", "heun", "dpm"))

OUTER = Dialect(
    protocol=4,
    opcodes=frozenset(
        "FRAME MEMOIZE BINGET SHORT_BINUNICODE BINUNICODE BINBYTES BININT BININT1 BININT2 BINFLOAT NEWTRUE NEWFALSE"
        " NONE EMPTY_DICT EMPTY_TUPLE EMPTY_LIST EMPTY_SET MARK TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND"
        " APPENDS STACK_GLOBAL REDUCE NEWOBJ BUILD STOP".split()
    ),
    globals=frozenset(_CALLS) | _CLASSES | _MARKERS,
    calls=_CALLS,
    classes=_CLASSES,
)


def contents(top: object) -> Contents:
    """What the object of an outer pickle says, as `load` gave it.

    Raises:
        PublishedTableError: for another object than a table's.
    """
    if type(top) is not dict or set(top) not in ({"model"}, {"model", "loss_fn"}):
        content = f"a dict of {', '.join(map(shown, list(top)[:8]))}" if type(top) is dict else shown(top)
        raise fault(content, "a dict with model, and perhaps loss_fn")
    model = _state(top["model"], "EPD_predictor")
    metadata, sigmas = _metadata(model), None
    if "loss_fn" in top:
        metadata["loss_fn"], sigmas = _loss(_state(top["loss_fn"], "EPD_loss"))
    return Contents(_parameters(model["state"]), {}, metadata, sigmas)


def _state(meta: object, class_name: str) -> dict[str, Any]:
    keys = {"type", "version", "module_src", "class_name", "state"}
    if type(meta) is not dict or set(meta) != keys or type(meta["state"]) is not dict:
        raise fault(f"{shown(meta)} for {class_name}", f"a dict of {', '.join(sorted(keys))}")
    header = (meta["type"], meta["version"], meta["class_name"])
    if header != ("class", 6, class_name) or type(meta["module_src"]) is not str:
        content = f"type {shown(meta['type'])}, version {shown(meta['version'])}, class {shown(meta['class_name'])}"
        raise fault(content, f"type 'class', version 6, class {class_name!r}, source text")
    return meta


def _parameters(state: dict[str, Any]) -> dict[str, NDArray[Any]]:
    parameters = state.get("_parameters")
    if type(parameters) is not dict or set(parameters) != set(RAW):
        raise fault("other parameters than those of an EPD_predictor", ", ".join(RAW))
    for name, tensor in parameters.items():
        if type(tensor) is not StoredTensor or not tensor.is_plain or len(tensor.size) != 2:
            raise fault(f"{name} as {shown(tensor)}", "a contiguous float32 tensor (num_steps - 1, num_points)")
    return {name: parameters[name].array() for name in RAW}


def _metadata(meta: dict[str, Any]) -> dict[str, JSON]:
    source = meta["module_src"].encode()
    kept = {k: v for k, v in meta["state"].items() if not k.startswith("_") or k in ("_init_args", "_init_kwargs")}
    digest = hashlib.sha1(source, usedforsecurity=False).hexdigest()
    own: dict[str, JSON] = {"class_name": meta["class_name"]}
    own["module_src"] = {"sha1": digest, "length": len(meta["module_src"])}
    if clash := set(kept) & {*own, "loss_fn"}:
        raise fault(f"the attribute {min(clash)!r}", "attributes of other names")
    return {**plain_values(kept), **own}


def _loss(meta: dict[str, Any]) -> tuple[dict[str, JSON], NDArray[Any] | None]:
    metadata, steps = _metadata(meta), meta["state"].get("t_steps")
    if steps is None:
        return metadata, None
    if type(steps) is not StoredTensor or len(steps.size) != 1:
        raise fault(f"t_steps as {shown(steps)}", "a float32 tensor (num_steps,)")
    sigmas = steps.array()
    return {**metadata, **plain_values({"t_steps": sigmas.tolist()})}, sigmas
