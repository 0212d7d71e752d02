"""`epd table show | convert | diff`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from helpers import golden
from helpers import published_files as files
from helpers.command import Run, table

from epd import cli
from epd.solvers.named import named_table
from epd.solvers.table import Provenance, Table


def test_show_says_what_a_table_does(run: Run, saved: Path) -> None:
    code, out, _ = run("table", "show", saved)
    assert code == cli.OK
    assert "3 two-call steps, 5 sequential calls, 8 evaluations a sample, K = 2, AFS" in out
    assert table().digest in out and "for digits-exact, ve" in out
    rows = [line.split() for line in out.splitlines() if re.match(r"\d   ", line)]
    assert [row[:4] for row in rows] == [["0", "1", "80", "5"], ["1", "2", "5", "0.5"], ["2", "2", "0.5", "0.002"]]


def test_show_knows_second_order(run: Run, tmp_path: Path) -> None:
    sigmas = np.array([8.0, 4.0, 2.0])
    middle = np.log(sigmas[:-1] / ((sigmas[:-1] + sigmas[1:]) / 2)) / np.log(sigmas[:-1] / sigmas[1:])
    Table(sigmas, middle[:, None], [[1.0], [1.0]]).save(tmp_path / "two.json")
    assert "second order: in every step" in run("table", "show", tmp_path / "two.json")[1]
    Table(sigmas, [[0.5], [0.5]], [[1.0], [1.0]]).save(tmp_path / "one.json")
    assert "not second order in every step" in run("table", "show", tmp_path / "one.json")[1]


def test_show_prints_memory_and_lookahead(run: Run) -> None:
    out = run("table", "show", "cifar10-plugin-3x2")[1]
    assert "look-ahead" in out and "1.5000" in out and "-0.5000" in out and "sigma scale" in out
    assert "arXiv 2507.14797" in out


def test_diff_says_what_differs(run: Run, saved: Path, tmp_path: Path) -> None:
    assert run("table", "diff", saved, saved)[0] == cli.OK
    other = tmp_path / "other.json"
    table(weights=[[0.5, 0.5], [0.4, 0.6], [0.5, 0.5]], afs=False).save(other)
    code, out, _ = run("table", "diff", saved, other)
    assert code == cli.FAILED
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["afs", "True", "False"]
    assert lines[2:] == [["weights[1,", "0]", "0.5", "0.4"], ["weights[1,", "1]", "0.5", "0.6"]]


def test_diff_of_provenance_alone_is_no_difference(run: Run, saved: Path, tmp_path: Path) -> None:
    table(provenance=Provenance(model="digits", path="ve", metrics={"rmse": 0.5})).save(tmp_path / "b.json")
    code, out, _ = run("table", "diff", saved, tmp_path / "b.json")
    assert code == cli.OK and "equal" in out and "digits-exact" in out and "metrics.rmse" in out


def test_diff_of_other_shapes(run: Run) -> None:
    code, out, _ = run("table", "diff", "cifar10-epd-2x2", "cifar10-epd-3x2")
    assert code == cli.FAILED and "nodes shape" in out and "(2, 2)" in out and "(3, 2)" in out


def test_convert_writes_a_table(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "network-snapshot-000010.pkl", tmp_path / "new" / "table.json"
    source.write_bytes(files.model_of(golden.tables()["sd15-best"]).data())
    code, _, err = run("table", "convert", source, target)
    assert code == cli.OK and "10 two-call steps, 20 sequential calls, 30 evaluations" in err
    np.testing.assert_allclose(Table.load(target).nodes, named_table("sd15-rdpo-10x2").nodes, rtol=1e-15)
    sigmas = [str(s) for s in np.geomspace(14, 0.03, 11)]
    assert run("-q", "table", "convert", source, target, "--sigmas", *sigmas) == (cli.OK, "", "")
    assert Table.load(target).sigmas.tolist() == [float(s) for s in sigmas]
    assert run("table", "convert", source, target, "--sigmas", *sigmas, "--rho", "3")[0] == cli.USAGE
    assert run("table", "convert", source, target, "--schedule", "logsnr", "--sigma-max", "10")[0] == cli.OK
    assert Table.load(target).sigmas[0] == 10
