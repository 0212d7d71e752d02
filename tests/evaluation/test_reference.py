"""References: folders of pictures, EDM's statistics, our own; and what is refused."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy_pictures import WIDTH, TinyFeatures, saved_pictures
from PIL import Image

from epd.evaluation.extractors import Extractor, FeatureError, load_features, pictures_of
from epd.evaluation.metrics import moments
from epd.evaluation.reference import load_reference
from epd.evaluation.stats_files import ReferenceError, Statistics, write_statistics
from epd.runs.processes import Workers

PICTURE = (3, 6, 6)
FEATURES = load_features(TinyFeatures())


def load(source: Path, keep: Path, extractor: Extractor = FEATURES, picture: tuple[int, ...] = PICTURE) -> Statistics:
    return load_reference(source, extractor, picture, keep, 12, Workers())


def test_a_folder_is_its_pictures_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epd.evaluation.shards.SHARD", 8)
    pictures = saved_pictures(tmp_path / "set" / "b", 20)
    grey = Image.fromarray(np.full((6, 6), 77, np.uint8))
    (tmp_path / "set" / "a").mkdir()
    grey.save(tmp_path / "set" / "a" / "x.PNG")
    (tmp_path / "set" / "a" / "notes.txt").write_text("no picture")
    expected = FEATURES(torch.cat([torch.full((1, 3, 6, 6), 77 / 255), pictures]))
    found = load(tmp_path / "set", tmp_path / "keep")
    assert found.count == 21 and found.picture == PICTURE and found.features is not None
    torch.testing.assert_close(found.moments.mean, expected.double().mean(0))
    torch.testing.assert_close(found.moments.covariance, expected.double().T.cov())
    assert len(found.features) == 12 and all(bool((row == expected).all(1).any()) for row in found.features)
    seen = []
    other = Extractor(FEATURES.name, lambda x: (seen.append(len(x)), FEATURES.function(x))[1])
    again = load(tmp_path / "set", tmp_path / "keep", Extractor(FEATURES.name, FEATURES.function))
    assert torch.equal(again.moments.covariance, found.moments.covariance)
    load(tmp_path / "set", tmp_path / "keep", other)  # a function without weights to tell it by: kept apart
    load(tmp_path / "set", tmp_path / "keep", other)
    assert sum(seen) == 1 + 21 + 1  # the second time, the fixed picture alone
    (tmp_path / "set" / "a" / "x.PNG").unlink()
    assert load(tmp_path / "set", tmp_path / "keep", other).count == 20


def test_features_that_changed_under_their_name_are_computed_anew(tmp_path: Path) -> None:
    saved_pictures(tmp_path / "set")
    load(tmp_path / "set", tmp_path / "keep", Extractor("mine", TinyFeatures(0).forward))
    found = load(tmp_path / "set", tmp_path / "keep", Extractor("mine", TinyFeatures(1).forward))
    other = load(tmp_path / "set", tmp_path / "fresh", Extractor("mine", TinyFeatures(1).forward))
    assert torch.equal(found.moments.mean, other.moments.mean)


def test_saved_statistics_are_those_that_were_saved(tmp_path: Path) -> None:
    saved_pictures(tmp_path / "set")
    found = load(tmp_path / "set", tmp_path / "keep")
    write_statistics(tmp_path / "own.safetensors", found)
    again = load(tmp_path / "own.safetensors", tmp_path / "keep")
    assert torch.equal(again.moments.mean, found.moments.mean) and again.count == found.count == 30
    assert torch.equal(again.moments.covariance, found.moments.covariance)
    assert again.features is not None and found.features is not None and torch.equal(again.features, found.features)
    with pytest.raises(ReferenceError, match="made with other features"):
        load(tmp_path / "own.safetensors", tmp_path, load_features(TinyFeatures(1)))
    with pytest.raises(ReferenceError, match="is of pictures 6 x 6, the model's are 8 x 9"):
        load(tmp_path / "own.safetensors", tmp_path, picture=(3, 9, 8))
    with pytest.raises(ReferenceError, match="is of 5 features, mine has 2"):
        load(tmp_path / "own.safetensors", tmp_path, Extractor("mine", lambda x: x.flatten(1)[:, :2]))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_statistics_of_edm(tmp_path: Path, order: Any, dtype: Any) -> None:  # noqa: ANN401
    """`np.savez(file, mu=mu, sigma=sigma)`, as its fid.py writes them."""
    expected = moments(torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0)))
    sigma = np.asarray(expected.covariance.numpy(), dtype, order)
    np.savez(tmp_path / "edm.npz", mu=expected.mean.numpy().astype(dtype), sigma=sigma)
    found = load(tmp_path / "edm.npz", tmp_path)
    rtol = 1e-6 if dtype is np.float32 else 1e-15
    torch.testing.assert_close(found.moments.mean, expected.mean, rtol=rtol, atol=0)
    torch.testing.assert_close(found.moments.covariance, expected.covariance, rtol=rtol, atol=1e-9)
    assert found.count is None and found.features is None
    with pytest.raises(ReferenceError, match="only a reference of pictures can be saved"):
        write_statistics(tmp_path / "own.safetensors", found)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return open, (str(self.path), "w")  # type: ignore[return-value]


def test_pickles_in_statistics_are_not_executed(tmp_path: Path) -> None:
    objects, eye = np.array([Touch(tmp_path / "touched")] * WIDTH, object), np.eye(WIDTH)
    np.savez(tmp_path / "mu.npz", mu=objects, sigma=eye)
    np.savez(tmp_path / "sigma.npz", mu=np.zeros(WIDTH), sigma=objects)
    np.savez(tmp_path / "beside.npz", mu=np.zeros(WIDTH), sigma=eye, more=objects)
    (tmp_path / "stats.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    for name in ("mu.npz", "sigma.npz"):
        with pytest.raises(ReferenceError, match="is of object, needed are floating point numbers"):
            load(tmp_path / name, tmp_path)
    with pytest.raises(ReferenceError, match="pickles are not opened"):
        load(tmp_path / "stats.pkl", tmp_path)
    load(tmp_path / "beside.npz", tmp_path)  # what nobody asks for is not read
    assert not (tmp_path / "touched").exists()
    with pytest.warns(ResourceWarning):  # the trap works: Python opens the file that nobody closes
        pickle.loads((tmp_path / "stats.pkl").read_bytes())  # noqa: S301
        import gc

        gc.collect()
    assert (tmp_path / "touched").exists()


NAN = np.full((WIDTH, WIDTH), np.nan)
SKEW = np.triu(np.ones((WIDTH, WIDTH)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(WIDTH)}, "needed are the arrays mu and sigma"),
        ({"mu": np.zeros(WIDTH + 1), "sigma": np.eye(WIDTH + 1)}, "is of 6 features, TinyFeatures has 5"),
        ({"mu": np.zeros(WIDTH), "sigma": np.eye(WIDTH + 1)}, r"must be \(F,\) and \(F, F\)"),
        ({"mu": np.zeros(WIDTH), "sigma": NAN}, "not finite"),
        ({"mu": np.zeros(WIDTH), "sigma": SKEW}, "is no covariance"),
        ({"mu": np.zeros(WIDTH), "sigma": -np.eye(WIDTH)}, "is no covariance"),
        ({"mu": np.array(["a"] * WIDTH), "sigma": np.eye(WIDTH)}, "needed are floating point numbers"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"must be \(F,\) and \(F, F\)"),
    ],
)
def test_statistics_that_are_none(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(ReferenceError, match=message):
        load(tmp_path / "stats.npz", tmp_path)


def test_damaged_files_and_sizes_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    np.savez(path, mu=np.zeros(WIDTH), sigma=np.eye(WIDTH))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for data in (b"", b"PK", whole[:-30], b"no zip"):
        path.write_bytes(data)
        with pytest.raises(ReferenceError, match="no .npz that can be read"):
            load(path, tmp_path)
    with zipfile.ZipFile(path, "w") as archive:  # a petabyte, it says
        archive.writestr("mu.npy", parts["mu.npy"].replace(b"'shape': (5,)", b"'shape': (9,)"))
        archive.writestr("sigma.npy", parts["sigma.npy"])
    with pytest.raises(ReferenceError, match=r"declares \(9,\)"):
        load(path, tmp_path)
    own = tmp_path / "own.safetensors"
    for data in (b"", b"\xff" * 100, whole):
        own.write_bytes(data)
        with pytest.raises(ReferenceError, match="cannot be read"):
            load(own, tmp_path)
    with pytest.raises(ReferenceError, match="No such file"):
        load(tmp_path / "missing.npz", tmp_path)


def test_pictures_that_do_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with pytest.raises(ReferenceError, match="holds 0 pictures"):
        load(folder, tmp_path)
    saved_pictures(folder, 3)
    odd = folder / "odd.png"
    for picture, message in (
        (Image.new("RGB", (7, 6)), "is 7 x 6, the model's pictures are 6 x 6: resize"),
        (Image.new("RGBA", (6, 6)), "is of mode RGBA"),
        (Image.new("I;16", (6, 6)), "is of mode I;16"),
    ):
        picture.save(odd)
        with pytest.raises(ReferenceError, match=message):
            load(folder, tmp_path)
    odd.write_bytes(b"no picture")
    with pytest.raises(ReferenceError, match="no picture that can be read"):
        load(folder, tmp_path)


def test_pictures_are_those_of_files() -> None:
    decoded = torch.tensor([-0.5, 0.0, 0.1, 0.5019, 2.0]).reshape(5, 1, 1, 1)
    assert torch.equal(pictures_of(decoded)[:, :, 0, 0] * 255, torch.tensor([[0.0, 0, 26, 128, 255]]).T.expand(5, 3))
    with pytest.raises(FeatureError, match=r"decodes to shape \(5, 2, 1, 1\)"):
        pictures_of(decoded.expand(5, 2, 1, 1))


def test_features_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width=2):\n"
        "        super().__init__()\n"
        "        self.width, self.drop = width, torch.nn.Dropout(0.5)\n"
        "    def forward(self, x):\n"
        "        return self.drop(x.flatten(1)[:, : self.width])\n"
        "made = Net(3)\n"
        "def maker():\n    return lambda x: x.mean((2, 3))\n"
        "def plain(x, scale=2):\n    return scale * x.mean((2, 3))\n"
        "def number():\n    return 3\n"
        "def broken():\n    raise KeyError('weights')\n"
        "def maps(x):\n    return x\n"
        "def short(x):\n    return x.flatten(1)[:1]\n"
        "def nan(x):\n    return x.flatten(1) / (x.flatten(1) - x.flatten(1)[1])\n"
    )
    x = torch.rand(2, *PICTURE, generator=torch.Generator().manual_seed(0))
    mean = x.mean((2, 3))
    flat = x.flatten(1)
    for name, expected in (("Net", flat[:, :2]), ("made", flat[:, :3]), ("maker", mean), ("plain", 2 * mean)):
        assert torch.equal(load_features(f"{path}:{name}")(x), expected), name
    for name, message in (
        ("number", "returned int"),
        ("broken", "KeyError: 'weights'"),
        ("missing", "has no function 'missing'"),
    ):
        with pytest.raises(FeatureError, match=message):
            load_features(f"{path}:{name}")
    for name, message in (
        ("maps", r"are of shape \(2, 3, 6, 6\).*\(2, F\)"),
        ("short", r"shape \(1, 108\)"),
        ("nan", "of picture 1 of 2 are not finite"),
    ):
        with pytest.raises(FeatureError, match=message):
            load_features(f"{path}:{name}")(x)
    with pytest.raises(FeatureError, match="'resnet' are unknown: give inception"):
        load_features("resnet")


def test_inception_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(FeatureError, match=r"pip install 'epd\[metrics\]' torch-fidelity"):
        load_features("inception")
