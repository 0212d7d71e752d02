"""One `find_table`: whoever takes a table takes it from the same places, with the same errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import golden
from helpers import published_files as files
from helpers.tiny_pipelines import build

import epd
from epd.commands.inputs import named
from epd.pipelines.enable import _enabled
from epd.pipelines.kdiffusion import sample_epd, sigmas_of

NAME = "sd15-rdpo-10x2"


def by_enable(source: str | Path | epd.Table) -> epd.Table:
    pipe = epd.enable(build("sd"), source)
    found = _enabled[pipe].scheduler.table
    assert found is not None
    return found


def by_load_learned(source: str | Path | epd.Table) -> epd.Table:
    return epd.load_learned(build("sd"), source)


def by_k_diffusion(source: str | Path | epd.Table) -> epd.Table:
    sigmas = sigmas_of(source, torch.float64)
    x = sample_epd(lambda x, sigma: 0 * x, torch.ones(1, 1, dtype=torch.float64), table=source, disable=True)
    assert x.shape == (1, 1)
    table = epd.find_table(source)
    assert sigmas.tolist() == [*table.sigmas.tolist(), 0.0]
    return table


def by_command(source: str | Path | epd.Table) -> epd.Table:
    return next(iter(named([str(source)]).values()))


TAKERS: dict[str, Callable[[str | Path | epd.Table], epd.Table]] = {
    "find_table": epd.find_table,
    "enable": by_enable,
    "load_learned": by_load_learned,
    "k-diffusion": by_k_diffusion,
    "command": by_command,
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | Path]:
    """The same numbers in every kind of place."""
    table = epd.named_table(NAME)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    table.save(tmp_path / "table.json")
    table.save(tmp_path / "run" / "solver.json")
    table.save(tmp_path / "home" / "mine" / "solver.json")
    epd.save_learned(table, tmp_path / "learned")
    (tmp_path / "network.pkl").write_bytes(files.model_of(golden.tables()["sd15-best"]).data())
    kept = ("nodes", "weights", "sigmas", "slope_scale", "sigma_scale")
    (tmp_path / "network.npz").write_bytes(files.archive(**{name: getattr(table, name) for name in kept}))

    hub = {("me/solver", None): str(tmp_path / "learned" / "epd_scheduler" / "solver.json")}
    monkeypatch.setattr("epd.pipelines.find._download", lambda name, revision: hub[name, revision])
    return {
        "file": tmp_path / "table.json",
        "file as text": str(tmp_path / "table.json"),
        "file in the home folder": "~/mine/solver.json",
        "run": tmp_path / "run",
        "run in the home folder": "~/mine",
        "learned folder": str(tmp_path / "learned"),
        "published pickle": tmp_path / "network.pkl",
        "published archive": tmp_path / "network.npz",
        "published name": NAME,
        "hub id": "me/solver",
    }


@pytest.mark.parametrize("taker", TAKERS)
def test_every_taker_finds_the_table_everywhere(taker: str, places: dict[str, str | Path]) -> None:
    digest = epd.named_table(NAME).digest
    assert taker == "command" or TAKERS[taker](epd.named_table(NAME)).digest == digest
    for kind, source in places.items():
        table = TAKERS[taker](source)
        if kind == "published pickle":  # its weights are computed anew, to the last bits
            np.testing.assert_allclose(table.weights, epd.named_table(NAME).weights, rtol=1e-14)
        else:
            assert table.digest == digest, kind


ERRORS = {
    "missing.json": "missing.json cannot be read: No such file",
    "missing.pkl": "missing.pkl cannot be read: No such file",
    "~/missing.npz": "missing.npz cannot be read: No such file",
    "sd15-rdpo": "no published table is named 'sd15-rdpo': perhaps you meant .*; or give a file .*, a hub id",
    "empty": "has neither epd_scheduler/solver.json nor solver.json: give a folder that epd distill or save_learned",
    "broken.pkl": "broken.pkl is no published table",
    "broken.json": "broken.json is not valid JSON",
    "nobody/nothing": "nobody/nothing is no local folder and has no readable epd_scheduler/solver.json on the hub",
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("source", ERRORS)
def test_every_taker_says_the_same_of_what_is_none(
    taker: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("empty").mkdir()
    Path("broken.json").write_text("{")
    Path("broken.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match=ERRORS[source]):
        TAKERS[taker](source)
