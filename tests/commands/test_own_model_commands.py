"""`--model file.py:function`: a model of one's own through distill, sample and compare."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.command import Run

import epd
from epd import cli
from epd.commands.models import ModelOptions, load_model
from epd.denoisers.checks import ModelError
from epd.denoisers.own_function import is_own_function

QUICK = ["--pool", "64", "--batch", "64", "--validation", "64", "--iterations", "2", "--screening", "1"]
QUICK += ["--schedule", "polynomial", "--calls", "3"]

NETWORK = """
from dataclasses import dataclass

import torch
from torch import nn

import epd
from epd.denoisers.preconditioning import edm
from neighbour import SHAPE


@dataclass
class Size:
    width: "int"


def make(width: int = 8, guidance: float = 1.0, labels=(), prompts=()):
    torch.manual_seed(0)
    size = Size(width)
    net = nn.Sequential(nn.Conv2d(1, size.width, 3, padding=1), nn.SiLU(), nn.Conv2d(size.width, 1, 3, padding=1))
    return epd.NetworkDenoiser(
        call=lambda x, timestep, rows: guidance * net.eval()(x),
        precondition=edm(0.5),
        shape=SHAPE,
        sigma_min=0.02,
        sigma_max=20.0,
        name=f"net-{width}-{list(labels)}-{list(prompts)}",
    )


def needs_weights(weights: str):
    raise AssertionError


def anything(**options):
    return make(width=len(options))


def nothing():
    return print
"""

ARRAYS = '''
import numpy as np

import epd

MEANS, VARIANCE = np.random.default_rng(0).standard_normal((5, 1, 4, 4)), 0.25


def denoise(x, sigma):
    """The exact denoiser of five clusters, in NumPy: what a jitted JAX function would return."""
    spread = VARIANCE + sigma[:, None] ** 2
    away = ((x[:, None] - MEANS) ** 2).sum((2, 3, 4)) / (2 * spread)
    share = np.exp(away.min(1, keepdims=True) - away)
    mean = np.einsum("bk,kchw->bchw", share / share.sum(1, keepdims=True), MEANS)
    return (mean + (VARIANCE / spread)[..., None, None] * (x - mean)).astype(x.dtype)


def make():
    return epd.own_model(denoise, shape=(1, 4, 4), sigma_min=0.1, sigma_max=20.0, numpy=True, name="arrays")
'''


@pytest.fixture(autouse=True)
def search_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command adds to the search path and to the modules is gone afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("epd_own_model_") or name in ("neighbour", "models", "models.net"):
            del sys.modules[name]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A file with models, and one that it imports."""
    (tmp_path / "neighbour.py").write_text("SHAPE = (1, 4, 4)\n")
    (tmp_path / "random.py").write_text(NETWORK)  # a name that must not replace Python's own module
    return tmp_path / "random.py"


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    (tmp_path / "arrays.py").write_text(ARRAYS)
    return tmp_path / "arrays.py"


def test_a_torch_network_goes_through_distill_sample_and_compare(
    run: Run, cache: Path, net: Path, tmp_path: Path
) -> None:
    model, out = f"{net}:make", tmp_path / "x"
    code, _, err = run("distill", "--model", model, *QUICK, "--out", out)
    assert code == cli.OK and "Euler at 5 calls is" in err, err
    table = epd.Table.load(out / "solver.json")
    assert table.depth == 3 and table.provenance.model == "net-8-[]-[]"
    code, _, err = run("sample", "--model", model, "--table", out, "-n", "4", "--out", tmp_path / "s")
    assert code == cli.OK, err
    assert np.load(tmp_path / "s" / "samples.npz")["samples"].shape == (4, 4, 4, 1)
    words = ["--calls", "3", "--samples", "16", "--solvers", "Euler", "--out", tmp_path / "c"]
    code, text, err = run("compare", "--model", model, "--tables", out / "solver.json", *words)
    assert code == cli.OK and "**x** (learned)" in text, err
    record = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert record["dtype"] == "float32", "as distill has it"
    import random

    assert str(tmp_path) not in str(random.__file__), "Python's own module is still the one of that name"


def test_a_function_without_gradients_trains_by_gauss_newton_and_says_so(
    run: Run, cache: Path, arrays: Path, tmp_path: Path
) -> None:
    small = ["--pool", "128", "--batch", "128", "--validation", "64", "--iterations", "8", "--schedule", "polynomial"]
    out = tmp_path / "x"
    code, _, err = run("distill", "--model", f"{arrays}:make", *small, "--calls", "3", "--out", out)
    assert code == cli.OK and "gradients" in err and "Gauss-Newton" in err, err
    table = epd.Table.load(out / "solver.json")
    assert table.provenance.config["optimizer"] == "gauss-newton"
    model = load_model(f"{arrays}:make")
    noise = epd.unit_noise(range(32), model.shape)
    grid = epd.schedules.polynomial(400, model.sigma_min, model.sigma_max)
    end = epd.solve(epd.rules.heun(), model, noise, grid)
    learned = epd.solve(table.rule(), model, noise, table.sigmas.tolist())
    by_hand = epd.solve(epd.rules.ipndm(2), model, noise, epd.schedules.polynomial(3, 0.1, 20.0))
    assert float((learned - end).norm()) < 0.5 * float((by_hand - end).norm())


def test_a_yaml_config_names_the_model_too(run: Run, cache: Path, net: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {net}:make\noptions: {{width: 5}}\nlabels: [3, 1]\nrule: euler\ncalls: 4\ncount: 2\n")
    code, _, err = run("sample", "--config", config, "--out", tmp_path / "s")
    assert code == cli.OK and "2 samples of net-5-[3, 1]-[]" in err, err


def test_the_working_directory_is_importable(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    assert load_model("models.net:make").name == "net-8-[]-[]"
    assert load_model("random.py:make").name == "net-8-[]-[]"


def test_a_function_is_called_with_the_options_that_are_given(net: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red fox\nan owl\n")
    options = ModelOptions(prompts=tmp_path / "p.txt", labels=(3,), options={"width": 4})
    assert load_model(f"{net}:make", options).name == "net-4-[3]-['a red fox', 'an owl']"
    assert load_model(f"{net}:anything", ModelOptions(guidance=2.0, device="cpu")).name == "net-2-[]-[]"


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (
            "make",
            ModelOptions(height=64),
            "height = 64: the function .*:make has no argument 'height'; it takes width, g",
        ),
        (
            "make",
            ModelOptions(options={"depth": 2}),
            "depth = 2: the function .* has no argument 'depth'; it takes width",
        ),
        (
            "make",
            ModelOptions(guidance=2.0, options={"guidance": 3.0}),
            "guidance is given as an option and in options",
        ),
        ("nothing", ModelOptions(device="cpu"), "has no argument 'device'; it takes no options"),
        ("needs_weights", ModelOptions(), "needs 'weights': give --weights, an entry of that name in --options"),
        ("maek", ModelOptions(), "has no function 'maek'; it has make, needs_weights, anything, nothing"),
    ],
)
def test_options_that_do_not_fit_are_named(net: Path, function: str, options: ModelOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(f"{net}:{function}", options)


@pytest.mark.parametrize("command", [["distill"], ["sample", "--rule", "euler"], ["compare", "--calls", "3"]])
def test_what_is_no_model_is_refused_before_anything_starts(
    run: Run, cache: Path, net: Path, tmp_path: Path, command: list[str]
) -> None:
    code, _, err = run(*command, "--model", f"{net}:nothing", "--out", tmp_path / "x")
    assert code == cli.FAILED and "builtin_function_or_method is no model, it has no name" in err, err
    assert not cache.exists() and not (tmp_path / "x").exists()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file .*missing.py: --model path/file.py:function needs one"):
        load_model(f"{tmp_path}/missing.py:make")
    with pytest.raises(ImportError, match="No module named 'no_such_package'"):
        load_model("no_such_package.models:make")
    with pytest.raises(ValueError, match="or your own function as file.py:function or package.module:function"):
        load_model("digit")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def make(): return {}['weights']", "make fails: KeyError: 'weights'"),
        ("def make(): return open('w.pt')", "make fails: FileNotFoundError: .*w.pt"),
        ("def make(): assert False, 'no weights'", "make fails: AssertionError: no weights"),
        ("def make(: pass", "mine.py fails: SyntaxError: "),
        ("WEIGHTS = {}['weights']", "mine.py fails: KeyError: 'weights'"),
    ],
)
def test_a_file_or_function_that_fails_is_one_sentence(run: Run, tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    code, _, err = run("distill", "--model", f"{tmp_path / 'mine.py'}:make", "--out", tmp_path / "x")
    assert code == cli.FAILED and re.search(message, err) and len(err.splitlines()) == 1, err


LATE = """
import torch
import epd
from epd.denoisers.preconditioning import edm

def few(x):
    if len(x) > 6:
        raise KeyError("only 6 rows")
    return 0 * x

def make():
    return epd.NetworkDenoiser(lambda x, time, rows: few(x), edm(0.5), (1, 8, 8), 0.02, 20.0, name="few")
"""


def test_a_network_that_fails_later_is_one_sentence_that_says_where(run: Run, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    words = ["sample", "--model", f"{tmp_path / 'late.py'}:make", "--rule", "euler", "-n", "8", "--out", tmp_path / "x"]
    code, _, err = run("-q", *words)
    assert code == cli.FAILED
    assert err == f"epd: error: {tmp_path / 'late.py'}:8 fails: KeyError: 'only 6 rows'; -vv shows the traceback\n"
    code, _, err = run("-vv", *words)
    assert code == cli.FAILED and "Traceback" in err and "in few" in err
    assert run(*words, "--rows", "4")[0] == cli.OK


def test_which_names_are_functions_and_which_are_not() -> None:
    names = ["mine.py:make", "../a b/mine.py:make", "~/mine.py:make", "mine:make", "a.b.c:make", "C:\\my\\mine.py:make"]
    assert all(map(is_own_function, names))
    others = [
        "digits",
        "owner/name",
        "runs/x",
        "mine.py",
        "mine.py:",
        "mine.py:ma-ke",
        ":make",
        "a/b:make",
        "http://x/y",
    ]
    assert not any(map(is_own_function, others))
