"""Converted published tables walk the recorded trajectories, on noise levels rebuilt from their metadata."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import golden
from helpers import published_files as files

from epd.denoisers.mixture import GaussianMixture
from epd.denoisers.protocol import Denoiser
from epd.solvers.convert import Grid, rebuild_sigmas, table_from_published
from epd.solvers.named import named_table
from epd.solvers.solve import trajectory
from epd.solvers.table import Table, TableError

CASES = [c for c in golden.cases() if c.table]
GUIDANCE = {"sd15_cfg7.5": 7.5, "sd3_cfg4.5": 4.5, "sd3_nocfg": 1.0, "flux": 1.0}


def denoiser(case: golden.Case) -> Denoiser:
    """The case's exact denoiser, bound for one row."""
    m = {k: torch.tensor(v) for k, v in golden.mixture().items()}
    labels = torch.zeros(10, dtype=torch.long)
    labels[m["cond_components"].long()] = 1
    path = "flow" if case.schedule == "flowmatch" else "ve"
    mixture = GaussianMixture(m["mu"], m["s"], m["w"], path=path, labels=labels)
    return mixture.bind([1], GUIDANCE[case.net]) if case.net in GUIDANCE else mixture


def written(folder: Path, name: str, loss: dict[str, Any] | None = None) -> Path:
    """A file of the published shape with a golden table's numbers."""
    path = folder / "network-snapshot-000010.pkl"
    path.write_bytes(files.model_of(golden.tables()[name]).data(loss))
    return path


def grid_of(case: golden.Case) -> Grid:
    """What a made-up file does not say of itself; a published one says everything."""
    assert case.table is not None
    if not case.table.startswith("synthetic"):
        return Grid()
    if case.schedule == "flowmatch":
        return Grid(sigma_min=0.003 / 1.002, sigma_max=1.0, shift=3.0)
    return Grid(sigma_min=case.sigma_min, sigma_max=case.sigma_max)


def no_source(case: golden.Case) -> bool:
    return case.table == "synthetic-fcn-3pt-noafs-sd15"  # discrete, of a model that the file does not name


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_a_converted_table_walks_the_recorded_trajectory(case: golden.Case, tmp_path: Path) -> None:
    assert case.table is not None
    sigmas = case.sigmas.tolist() if no_source(case) else None
    table = table_from_published(written(tmp_path, case.table), sigmas, grid_of(case))
    ours = table.sigmas
    np.testing.assert_allclose(ours, case.sigmas, rtol=3e-11, atol=0)
    if case.schedule == "flowmatch":
        assert (ours == case.sigmas).all()
    net = denoiser(case)
    states = list(trajectory(table.rule(), net, torch.tensor(case.noise), table.sigmas.tolist()))
    if case.options["denoise_to_zero"]:
        states.append(net(states[-1], torch.tensor(float(ours[-1]), dtype=torch.float64)))
    np.testing.assert_allclose(np.stack([x[0].numpy() for x in states]), case.states, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in sorted(golden.tables()) if not n.startswith("synthetic")])
def test_a_converted_table_keeps_its_metadata_through_json(name: str, tmp_path: Path) -> None:
    table = table_from_published(written(tmp_path, name))
    table.save(tmp_path / "table.json")
    back = Table.load(tmp_path / "table.json")
    assert back == table and back.digest == table.digest
    kept = back.provenance.metadata
    assert golden.tables()[name]["metadata"].items() <= kept.items()
    assert back.provenance.citation == ("arXiv 2507.14797" if name.startswith("0") else "arXiv 2512.22796")
    assert back.order == (3 if "ipndm" in name else 1) and back.afs == name.startswith("0")


@pytest.mark.parametrize(
    ("published", "shipped"),
    [("sd15-best", "sd15-rdpo-10x2"), ("sd3-512-best", "sd3-512-rdpo-10x2"), ("flux-best", "flux-rdpo-8x2")]
    + [(f"0000{i - 1}-cifar10-{i + 1}-{2 * i - 1}-epd-uni1.0-afs", f"cifar10-epd-{i}x2") for i in (2, 3, 4, 5)],
)
def test_a_converted_table_is_the_shipped_one(published: str, shipped: str, tmp_path: Path) -> None:
    ours, theirs = table_from_published(written(tmp_path, published)), named_table(shipped)
    for name in ("sigmas", "nodes", "weights", "slope_scale", "sigma_scale"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=2e-11, atol=1e-15, err_msg=name)
    assert (ours.order, ours.afs, ours.calls) == (theirs.order, theirs.afs, theirs.calls)
    named = ("model", "path", "schedule", "prediction", "resolution", "citation")
    assert [getattr(ours.provenance, n) for n in named] == [getattr(theirs.provenance, n) for n in named]


def with_steps(name: str, t_steps: np.ndarray) -> dict[str, Any]:
    loss = files.loss_meta(len(t_steps))
    loss["state"]["t_steps"] = files.Tensor(t_steps.astype(np.float32), location="cuda:0")
    return loss


NAME = "00002-cifar10-4-5-epd-uni1.0-afs"


def test_the_float32_grid_of_a_training_is_rebuilt_in_float64(tmp_path: Path) -> None:
    exact = table_from_published(written(tmp_path, NAME)).sigmas
    rounded = exact * np.array([1, 1, 1, 1.0066])  # what float32 makes of the last one
    table = table_from_published(written(tmp_path, NAME, with_steps(NAME, rounded)))
    assert (table.sigmas == exact).all() and "as the file holds" not in table.provenance.notes


def test_a_training_on_other_sigmas_than_its_schedule_keeps_them(tmp_path: Path) -> None:
    other = np.array([80, 10, 1, 0.002], np.float32)
    table = table_from_published(written(tmp_path, NAME, with_steps(NAME, other)))
    assert table.sigmas.tolist() == other.astype(float).tolist()
    assert "as the file holds them" in table.provenance.notes


def test_given_sigmas_and_schedules_win(tmp_path: Path) -> None:
    path = written(tmp_path, NAME)
    assert table_from_published(path, [9, 3, 1, 0.5]).sigmas.tolist() == [9, 3, 1, 0.5]
    ends = table_from_published(path, grid=Grid(schedule="logsnr", sigma_max=10.0)).sigmas
    np.testing.assert_allclose(ends, np.geomspace(10, 0.002, 4), rtol=1e-12)
    shifted = table_from_published(written(tmp_path, "flux-best"), grid=Grid(shift=1.0)).sigmas
    np.testing.assert_allclose(shifted, np.linspace(1, 0.001, 9), rtol=1e-6)


def test_an_archive_with_sigmas_needs_no_schedule(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    path.write_bytes(files.archive(nodes=[[0.5], [0.25]], weights=[[1.0], [1.0]], sigmas=[4.0, 2.0, 1.0]))
    table = table_from_published(path)
    assert table.sigmas.tolist() == [4, 2, 1] and table.provenance.notes == "Converted from table.npz."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_name": "mine"}, "'mine' is unknown, and with it sigma_min and sigma_max: give them"),
        ({"schedule_type": "wavy"}, "'wavy' is unknown: give one of .*polynomial"),
        ({"schedule_type": "discrete"}, "training noise is known: give --sigmas"),
        ({"schedule_type": None}, "names no schedule: give --schedule"),
        ({"sampler_stu": "ipndm", "max_order": 7}, "order = 7 must be 1, 2, 3 or 4"),
    ],
)
def test_what_is_not_known_is_one_error(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = golden.tables()[NAME]
    path = tmp_path / "table.pkl"
    path.write_bytes(files.model_of({**table, "metadata": {**table["metadata"], **change}}).data())
    with pytest.raises(TableError, match=message):
        table_from_published(path)


def test_the_wrong_number_of_sigmas_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="shape"):
        table_from_published(written(tmp_path, NAME), [3, 2, 1])


CHANGES: dict[str, Any] = {
    "schedule": "logsnr", "sigma_min": 0.05, "sigma_max": 10.0, "rho": 3.0, "shift": 2.0, "mu": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Grid)])
def test_every_field_of_a_grid_changes_the_sigmas_of_some_schedule(field: str) -> None:
    flow = field in ("shift", "mu")
    base = Grid("flowmatch", 0.001, 1.0) if flow else Grid("polynomial", 0.002, 80.0)
    changed = dataclasses.replace(base, **{field: CHANGES[field]})
    before, after = (rebuild_sigmas({}, 4, grid) for grid in (base, changed))
    expected = {
        "schedule": np.geomspace(80.0, 0.002, 5),
        "sigma_min": (80 ** (1 / 7) + np.linspace(0, 1, 5) * (0.05 ** (1 / 7) - 80 ** (1 / 7))) ** 7,
        "sigma_max": (10 ** (1 / 7) + np.linspace(0, 1, 5) * (0.002 ** (1 / 7) - 10 ** (1 / 7))) ** 7,
        "rho": (80 ** (1 / 3) + np.linspace(0, 1, 5) * (0.002 ** (1 / 3) - 80 ** (1 / 3))) ** 3,
        "shift": (s := np.linspace(1.0, 0.001, 5)) * 2 / (1 + s),
        "mu": s * np.exp(0.5) / (1 + (np.exp(0.5) - 1) * s),
    }[field]
    np.testing.assert_allclose(after, expected, rtol=1e-6)  # a flow's are rounded to float32, as published
    assert not np.allclose(before, after, rtol=1e-3)
