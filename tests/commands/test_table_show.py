"""`epd table show | diff` of every structure: nothing that is not so, nothing left out, lines that can be read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Run
from helpers.guided import scaled
from helpers.tables import FAMILIES, PLAIN, dense_table

import epd
from epd import cli
from epd.pipelines.table_description import describe, orders
from epd.solvers import moments
from epd.solvers.table import Table


def columns(text: str) -> dict[str, list[str]]:
    """The table of steps, column by column."""
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("step  calls"))
    starts = [match.start() for match in re.finditer(r"(?:^|  )\S", lines[first])]
    rows = lines[first : lines.index("", first)]
    cells = [[row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for row in rows]
    return {head: list(column) for head, *column in zip(*cells, strict=True)}


def section(text: str, head: str) -> list[list[str]]:
    """The rows below a head, cell by cell."""
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith(head))
    rows = [*lines[first + 2 :], ""]
    return [re.split(r" {2,}", row) for row in rows[: rows.index("")]]


@pytest.mark.parametrize("width", [0, 1])
@pytest.mark.parametrize("calls", [3, 9])
def test_show_tells_dense_tables_truthfully(width: int, calls: int, run: Run, tmp_path: Path) -> None:
    table = dense_table(width, calls=calls)
    table.save(tmp_path / "dense.json")
    code, text, _ = run("table", "show", tmp_path / "dense.json")
    assert code == cli.OK
    assert text.splitlines()[0] == (
        f"an analytic first step and {calls} one-call steps, {calls} sequential calls, {calls * (1 + width)} "
        f"evaluations a sample, K = {1 + width}, free sums"
    )
    shown = columns(text)
    assert shown["calls"] == ["0"] + ["1"] * calls
    assert shown["order"] == ["free"] * (calls + 1)
    levels = [f"{sigma:.4g}" for sigma in table.anchor_scale * table.sigmas[:-1]]
    assert shown["anchor told"] == ["-", *levels[1:]]
    assert shown["anchor scale"] == ["-", *(f"{scale:.4f}" for scale in table.anchor_scale[1:])]
    if width:
        where = table.sigmas[1:] ** table.nodes[:, 0] * table.sigmas[:-1] ** (1 - table.nodes[:, 0])
        levels = [f"{sigma:.4g}" for sigma in table.sigma_scale[:, 0] * where]
        assert shown["points told"] == ["-", *levels[1:]]
    of_points = [shown[name] for name in ("nodes", "at sigma", "weights", "sigma scale") if name in shown]
    assert len(of_points) == 4 * width and {column[0] for column in of_points} <= {"-"}
    assert "free sums: weights need not sum to 1" in text and "not consistent" not in text
    assert "told: the noise level that the network is told" in text
    assert max(map(len, text.splitlines())) < 160


@pytest.mark.parametrize("width", [0, 1])
def test_show_prints_all_memory_of_nine_steps_newest_first(width: int) -> None:
    table = dense_table(width, calls=9)
    text = describe(table)
    memory = section(text, "memory: weights of earlier slopes, newest step first")
    assert [row[0] for row in memory] == [str(n) for n in range(1, 10)]
    for n, row in enumerate(memory):
        numbers = row[1].replace(";", "").split()
        assert numbers == [f"{weight:.4f}" for weight in table.memory[n + 1][: 1 + n * (1 + width)]]
    if width:
        directions = section(text, "look-ahead")
        assert [row[:3] for row in directions] == [[str(n), "0", "-"] for n in range(1, 10)]
        assert directions[-1][3].count(";") == 8


def test_show_has_factors_of_the_guidance_where_one_is_not_1() -> None:
    table = scaled(dense_table())
    shown = columns(describe(table))
    assert shown["anchor guidance"] == ["-", *(f"{f:.4f}" for f in table.anchor_guidance[1:])]
    assert shown["guidance scale"] == ["-", *(f"{f:.4f}" for f in table.guidance_scale[1:, 0])]
    assert not {"anchor guidance", "guidance scale"} & {*columns(describe(dense_table()))}
    halved = dataclasses.replace(PLAIN, anchor=[0.0, 1.0], weights=[[0.25, 0.75], [0.0, 0.0]])
    assert columns(describe(halved))["order"] == ["1", "1"]  # a slope of another guidance is not that of the ODE
    other = dataclasses.replace(halved, anchor_guidance=[1.0, 1.5], guidance_scale=[[1.0, 1.5], [1.5, 1.5]])
    assert columns(describe(other))["order"] == ["0", "0"]


def test_show_has_no_anchor_scale_where_all_are_1() -> None:
    assert "anchor scale" not in describe(PLAIN) and "told" not in describe(PLAIN)
    assert columns(describe(dataclasses.replace(PLAIN, anchor_scale=[1.0, 0.5])))["anchor told"] == ["4", "1"]


@pytest.mark.parametrize("name", FAMILIES)
def test_show_counts_every_call(name: str) -> None:
    assert sum(map(int, columns(describe(FAMILIES[name]))["calls"])) == FAMILIES[name].depth


def test_slopes_told_another_noise_level_are_of_no_order_wherever_they_are_weighed() -> None:
    plain: dict[str, Any] = {"nodes": np.zeros((3, 0)), "weights": np.zeros((3, 0)), "calls": 1}
    memory = [[0, 0], [-0.5, 0], [-0.5, 0]]
    table = Table([8, 4, 2, 1], **plain, anchor=[1, 1.5, 1.5], memory=memory)
    assert orders(table) == ["1"] * 3
    scaled = dataclasses.replace(table, anchor_scale=[0.9, 1, 1])
    assert orders(scaled) == ["0", "0", "1"]
    analytic = dataclasses.replace(table, calls=[0, 1, 1])
    assert orders(analytic) == ["1"] * 3


def test_many_steps_take_time_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(moments, "moments_of", lambda table, of=moments.moments_of: counted.append(1) or of(table))
    table = Table(epd.schedules.polynomial(50, 0.1, 40.0), np.full((50, 1), 0.5), np.ones((50, 1)))
    assert columns(describe(table))["order"] == ["1"] * 50 and len(counted) <= 4  # of all steps, not once a step


EVIL = "\x1b]0;pwn\x07\x1b[31mred\n\nfake line\u202e"


def test_what_a_file_says_is_no_command_to_the_terminal(run: Run, tmp_path: Path) -> None:
    path, other = tmp_path / "evil.json", tmp_path / "plain.json"
    config, metadata = {EVIL: EVIL}, {"of": [EVIL]}
    told = epd.Provenance(model=EVIL, schedule=EVIL, notes=EVIL, config=config, metadata=metadata, path="ve")
    dataclasses.replace(dense_table(), provenance=told).save(path)
    dataclasses.replace(dense_table(), provenance=epd.Provenance(path="flow", notes=EVIL)).save(other)
    sample = ["sample", "--model", "digits-exact", "-n", "1", "--out", tmp_path / "x", "--table"]
    words = (["table", "show", path], ["table", "diff", path, other], [*sample, path], [*sample, other],
             ["distill", "--model", EVIL], ["table", "show", EVIL])  # fmt: skip
    for typed in words:
        _, out, err = run(*typed)
        said = out + err
        assert out or err
        assert not {*said} & {"\x1b", "\x07", "\u202e"} and "\nfake line" not in said, typed
    assert "\\x1b[31mred\\n\\nfake line" in run("table", "show", path)[1]


BASE = dataclasses.replace(PLAIN, consistent=False, memory=np.zeros((2, 3)))
CHANGES: dict[str, Any] = {
    "sigmas": [4.0, 2.5, 1.0],
    "nodes": [[0.3, 0.8], [0.6, 0.2]],
    "weights": [[0.25, 0.75], [0.5, 0.25]],
    "slope_scale": [[1.0, 1.0], [1.0, 1.5]],
    "sigma_scale": [[1.0, 1.0], [1.0, 1.5]],
    "anchor_scale": [1.0, 1.5],
    "order": 2,
    "afs": True,
    "anchor": [0.0, 0.5],
    "memory": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]],
    "lookahead": [[[1.0, 0, 0, 0]] * 2, [[1.0, 0, 0, 0], [0.5, 0, 0, 0]]],
    "calls": [2, 1],
    "consistent": True,
    "guidance_scale": [[1.0, 1.0], [1.0, 1.5]],
    "anchor_guidance": [1.0, 1.5],
}


def test_every_field_of_a_table_is_compared() -> None:
    assert {*CHANGES, "provenance"} == {field.name for field in dataclasses.fields(Table)}


@pytest.mark.parametrize("name", CHANGES)
def test_diff_sees_every_field(name: str, run: Run, tmp_path: Path) -> None:
    BASE.save(tmp_path / "a.json")
    dataclasses.replace(BASE, **{name: CHANGES[name]}).save(tmp_path / "b.json")
    code, text, _ = run("table", "diff", tmp_path / "a.json", tmp_path / "b.json")
    assert code == cli.FAILED
    assert re.search(rf"^{name}\b", text, re.MULTILINE)
