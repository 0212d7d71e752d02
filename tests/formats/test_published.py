"""The reader of published tables on valid files: every number of every golden table, from files of the same shape."""

from __future__ import annotations

import collections
import hashlib
import json
import pickle
import pickletools
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import golden
from helpers import published_files as files

from epd.formats.published import Published, PublishedTableError, read_published

NAMES = sorted(golden.tables())
FIELDS = {"nodes": "r", "weights": "weight", "slope_scale": "scale_dir", "sigma_scale": "scale_time"}
SEEN = set(
    "PROTO FRAME MEMOIZE BINGET SHORT_BINUNICODE BINUNICODE BINBYTES BININT BININT1 BININT2 BINFLOAT NEWTRUE NEWFALSE"
    " NONE EMPTY_DICT EMPTY_TUPLE EMPTY_LIST EMPTY_SET MARK TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS"
    " STACK_GLOBAL REDUCE NEWOBJ BUILD STOP".split()
)


def read(tmp_path: Path, data: bytes, name: str = "table.pkl") -> Published:
    (tmp_path / name).write_bytes(data)
    return read_published(tmp_path / name)


def require_effective(found: Published, table: dict[str, Any]) -> None:
    for ours, theirs in FIELDS.items():
        value = getattr(found, ours)
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, table["effective"][theirs], rtol=0, atol=3e-16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_loss", [True, False])
def test_a_published_file_gives_its_numbers_to_the_bit(tmp_path: Path, name: str, with_loss: bool) -> None:
    table = golden.tables()[name]
    model = files.model_of(table)
    steps = len(table["raw"]["r_params"]) + 1
    loss = files.loss_meta(steps) if with_loss else None
    found = read(tmp_path, model.data(loss))
    assert list(found.raw) == ["r_params", "weight_s", "scale_dir_params", "scale_time_params"]
    for key, value in found.raw.items():
        assert value.dtype == np.float32
        assert value.tobytes() == np.array(table["raw"][key], np.float32).tobytes()
    require_effective(found, table)
    assert table["metadata"].items() <= found.metadata.items()
    assert json.loads(json.dumps(found.metadata, allow_nan=False)) == found.metadata
    if loss is None:
        assert found.sigmas is None and "loss_fn" not in found.metadata
    else:
        expected = loss["state"]["t_steps"].values.astype(np.float64)
        np.testing.assert_array_equal(found.sigmas, expected)


def test_metadata_is_all_plain_values_and_no_source(tmp_path: Path) -> None:
    table = golden.tables()["00017-cifar10-3-3-ipndm-uni1.0-afs"]
    found = read(tmp_path, files.model_of(table).data(files.loss_meta(3, teacher="dpm"))).metadata
    source = {"sha1": hashlib.sha1(files.SOURCE.encode()).hexdigest(), "length": len(files.SOURCE)}
    own = {"training": True, "_init_args": [], "_init_kwargs": table["metadata"], "class_name": "EPD_predictor"}
    loss = found.pop("loss_fn")
    assert found == table["metadata"] | own | {"module_src": source}
    assert isinstance(loss, dict)
    assert (loss["solver_stu"], loss["solver_tea"], loss["class_name"]) == ("ipndm_sampler", "dpm_sampler", "EPD_loss")
    assert loss["buffer_model"] == [{"shape": [2, 3, 8, 8]}] * 2 and loss["tea_slice"] == [0, 3, 6]
    assert loss["t_steps"] == np.geomspace(80, 0.002, 3).astype(np.float32).astype(float).tolist()


def test_a_loss_without_a_schedule(tmp_path: Path) -> None:
    loss = files.loss_meta(5)
    del loss["state"]["t_steps"]
    assert read(tmp_path, files.model_of(golden.tables()["synthetic-1pt"]).data(loss)).sigmas is None


def test_our_files_have_the_published_shape() -> None:
    loss = files.loss_meta(3)
    for data in (files.model_of(golden.tables()[n]).data(loss) for n in NAMES):
        opcodes = collections.Counter(op.name for op, _, _ in pickletools.genops(data))
        assert set(opcodes) <= SEEN
        assert opcodes["PROTO"] == opcodes["STOP"] == 1


def test_our_tensors_are_those_of_torch_to_the_byte() -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    theirs = pickle.dumps(torch.nn.Parameter(torch.from_numpy(values)), 4)
    key = re.search(rb"FloatStorage\nq\x01X....(\d+)", theirs, re.DOTALL)
    assert key is not None
    assert files.pickled(files.Tensor(values, parameter=True, key=key[1].decode())) == theirs


def test_pickle_and_torch_read_the_same_numbers(tmp_path: Path) -> None:
    class Reference(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the signature of pickle
            return (lambda meta: meta) if module == "torch_utils.persistence" else super().find_class(module, name)

    data = files.model_of(golden.tables()["synthetic-fcn-3pt"]).data()
    theirs = Reference(BytesIO(data)).load()["model"]["state"]["_parameters"]
    ours = read(tmp_path, data).raw
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value.detach().numpy())


def test_extreme_parameters_saturate_without_a_warning(tmp_path: Path) -> None:
    model = files.model_of(golden.tables()["00001-cifar10-3-3-epd-uni1.0-afs"])
    big = float(np.finfo(np.float32).max)
    for value in model.raw.values():
        value[:] = [[-big, big], [-800.0, 40.0]]
    found = read(tmp_path, model.data())
    np.testing.assert_array_equal(found.nodes, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(found.weights, [[0, 1], [0, 1]])
    assert np.isfinite(found.slope_scale).all() and np.isfinite(found.sigma_scale).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_archive_of_raw_numbers(tmp_path: Path, name: str) -> None:
    table = golden.tables()[name]
    raw = {k: np.array(v, np.float32) for k, v in table["raw"].items()}
    data = files.archive(**raw, metadata=json.dumps(table["metadata"]))
    found = read(tmp_path, data, "table.npz")
    require_effective(found, table)
    assert found.metadata == table["metadata"] and found.sigmas is None
    for key, value in raw.items():
        assert found.raw[key].tobytes() == value.tobytes()


def test_an_archive_of_raw_numbers_with_scalars(tmp_path: Path) -> None:
    table = golden.tables()["synthetic-fcn-3pt"]
    options = {k: table["metadata"][k] for k in ("scale_dir", "scale_time", "fcn", "sampler_stu", "num_steps")}
    found = read(tmp_path, files.archive(**table["raw"], **options), "table.npz")
    require_effective(found, table)
    assert found.metadata == options


@pytest.mark.parametrize("names", [("r", "weight", "scale_dir", "scale_time"), tuple(FIELDS)])
def test_an_archive_of_effective_values(tmp_path: Path, names: tuple[str, ...]) -> None:
    table = golden.tables()["synthetic-fcn-3pt"]
    values = {new: table["effective"][old] for new, old in zip(names, FIELDS.values(), strict=True)}
    sigmas = np.geomspace(80, 0.002, 5)
    found = read(tmp_path, files.archive(**values, sigmas=sigmas, afs=True), "table.npz")
    for ours, theirs in FIELDS.items():
        np.testing.assert_array_equal(getattr(found, ours), table["effective"][theirs])
    np.testing.assert_array_equal(found.sigmas, sigmas)
    assert found.raw == {} and found.metadata == {"afs": True}
    short = read(tmp_path, files.archive(nodes=values[names[0]], weights=values[names[1]]), "table.npz")
    assert (short.slope_scale == 1).all() and (short.sigma_scale == 1).all()


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    table = golden.tables()["sd15-best"]
    require_effective(read(tmp_path, files.model_of(table).data(), "table.npz"), table)
    with pytest.raises(PublishedTableError, match="no pickle at byte 0"):
        read(tmp_path, json.dumps(table).encode(), "table.pkl")
