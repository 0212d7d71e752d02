"""Comparisons that are stopped go on: what is measured stays measured, for the same options and the same network."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import epd
from epd.evaluation.compare import compare
from epd.evaluation.comparison import Cell, Comparison
from epd.evaluation.kept import Kept

TABLE = epd.Table([20.0, 2.0, 0.02], [[0.3, 0.7]] * 2, [[0.5, 0.5]] * 2)


class Counted(epd.GaussianMixture):
    """Counts its calls and stops, like Ctrl-C, before one of them."""

    calls = 0
    stop = -1

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return super().__call__(x, sigma)

    def for_seeds(self, seeds: Sequence[int]) -> Counted:
        return self


def mixture(mean: float = 0.0) -> Counted:
    means = torch.tensor([-1.0, mean, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    return Counted(means, 0.3, sigma_min=0.02, sigma_max=20.0, name="kept")


def measure(model: Counted, keep: Path | None, samples: int = 24, calls: Sequence[int] = (2, 3)) -> Comparison:
    return compare(
        model, {"ours": TABLE}, calls, samples, 8, tuning=8, tolerance=1e-4, solvers=["Euler", "Heun"], keep=keep
    )


def untimed(comparison: Comparison) -> list[Cell]:
    return [replace(cell, seconds=0.0) for cell in comparison.cells]


def test_a_comparison_that_is_stopped_goes_on_cell_by_cell(tmp_path: Path) -> None:
    whole = mixture()
    expected = measure(whole, None)
    stopped, sessions, seconds = mixture(), 0, set[float]()
    while True:  # stopped while end points are solved, while schedules are chosen, while a cell is measured
        stopped.stop = stopped.calls + whole.calls // 4
        sessions += 1
        try:
            done = measure(stopped, tmp_path)
            break
        except KeyboardInterrupt:
            assert sessions < 20
            for path in tmp_path.rglob("cells.json"):
                seconds |= {cell["seconds"] for cell in json.loads(path.read_text())["cells"].values() if cell}
    assert sessions > 3 and 0 < len(seconds) < len(expected.cells)
    assert untimed(done) == untimed(expected)
    assert seconds <= {cell.seconds for cell in done.cells}  # what was measured then was not measured again
    again = mixture()
    assert measure(again, tmp_path).cells == done.cells
    assert again.calls == 4 + 3  # the model is checked, and one evaluation of each batch proves the network


def test_one_more_table_or_count_measures_that_alone(tmp_path: Path) -> None:
    first = measure(mixture(), tmp_path, calls=(2,))
    model = mixture()
    both = measure(model, tmp_path, calls=(2, 3))
    assert all(cell in both.cells for cell in first.cells) and len(both.cells) > len(first.cells)
    renamed = compare(model, {"t": TABLE}, (2,), 24, 8, tuning=8, tolerance=1e-4, solvers=["Euler"], keep=tmp_path)
    assert {cell.group for cell in renamed.cells if cell.learned} == {"t"}


def test_other_options_are_measured_anew_and_harm_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "epd")
    first = measure(mixture(), tmp_path)
    assert measure(mixture(), tmp_path, samples=16).samples == 16
    assert "are of other options (samples was 24, is 16): measuring anew, beside them" in caplog.text
    assert measure(mixture(), tmp_path).cells == first.cells


def test_cells_of_another_network_under_the_same_name_are_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = measure(mixture(), tmp_path)
    other = measure(mixture(0.5), tmp_path)
    assert "is of another network under the same name: measuring anew" in caplog.text
    assert untimed(other) == untimed(measure(mixture(0.5), None)) and untimed(other) != untimed(first)


def test_more_samples_go_on_with_the_end_points_of_fewer(tmp_path: Path) -> None:
    """16 samples are two whole batches of the 24; other batches are not theirs."""
    model, whole = mixture(), mixture()
    measure(model, tmp_path, samples=16)
    files = sorted(tmp_path.rglob("end-*.safetensors"))
    model.calls = 0
    more = measure(model, tmp_path)
    assert {path.name for path in tmp_path.rglob("end-*")} == {path.name for path in files} | {"end-2-8.safetensors"}
    assert untimed(more) == untimed(measure(whole, None)) and model.calls < whole.calls
    measure(model, tmp_path, samples=12)
    assert {path.name for path in tmp_path.rglob("end-1-*")} == {"end-1-8.safetensors", "end-1-4.safetensors"}


def test_another_network_empties_all_comparisons_that_share_end_points(tmp_path: Path) -> None:
    measure(mixture(), tmp_path, samples=16)
    measure(mixture(0.5), tmp_path)
    again = measure(mixture(0.5), tmp_path, samples=16)
    assert untimed(again) == untimed(measure(mixture(0.5), None, samples=16))


def test_damaged_files_are_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "epd")
    first = measure(mixture(), tmp_path)
    for damage in (b"{", b"[]", b'{"cells": [1]}', b'{"cells": {"a": {"no": 1}}}'):
        for path in tmp_path.rglob("*.json"):
            path.write_bytes(damage)
        assert untimed(measure(mixture(), tmp_path)) == untimed(first)
        assert "cannot be read: measuring its cells again" in caplog.text
        assert "other options" not in caplog.text  # they are of these
        caplog.clear()
    next(tmp_path.rglob("end-1-8.safetensors")).write_bytes(b"half")
    assert measure(mixture(), tmp_path).cells and "solving it again" in caplog.text


def test_a_solver_without_a_result_is_a_result(tmp_path: Path) -> None:
    asked: list[int] = []
    for _ in range(2):
        assert Kept(tmp_path, {"a": 1}, {}).cell("Heun at 1", lambda: asked.append(1)) is None
    assert asked == [1]
