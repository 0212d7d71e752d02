"""Grids pixel by pixel, and pictures of trajectories whose numbers are checked before they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy_models import toy_mixture
from PIL import Image

import epd
from epd.denoisers.noise import unit_noise
from epd.evaluation.plots import Traced, save_grid, save_side_by_side, trace, trajectory_plot
from epd.runs.pictures import GAP, tile, to_bytes

SIGMAS = epd.schedules.polynomial(4, 0.02, 20.0)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_bytes_are_rounded_clamped_and_three_channels() -> None:
    pixels = to_bytes(torch.tensor([[[[-1.0, 0.5], [0.999, float("nan")]]]]))
    assert pixels.shape == (1, 2, 2, 3) and pixels[0, :, :, 0].tolist() == [[0, 128], [255, 0]]
    assert to_bytes(torch.zeros(1, 4, 2, 2)).shape == to_bytes(torch.zeros(1, 2, 2, 2)).shape == (1, 2, 2, 3)


def test_a_grid_holds_every_picture_where_it_belongs(tmp_path: Path) -> None:
    images = torch.rand(5, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    sheet = read(save_grid(images, tmp_path / "sub" / "grid.png", columns=3))
    assert sheet.shape == (2 * (64 + GAP) + GAP, 3 * (32 + GAP) + GAP, 3)  # enlarged four times
    for i in range(5):
        top, left = GAP + i // 3 * (64 + GAP), GAP + i % 3 * (32 + GAP)
        cell = sheet[top : top + 64, left : left + 32]
        np.testing.assert_array_equal(cell[::4, ::4], to_bytes(images)[i].numpy())
        np.testing.assert_array_equal(cell[3::4, 3::4], cell[::4, ::4])
    assert (sheet[GAP + 64 + GAP :, 2 * (32 + GAP) + GAP :] == 255).all()  # the place of the sixth


def test_large_pictures_are_not_enlarged_and_few_need_few_columns() -> None:
    assert tile(torch.zeros(2, 3, 100, 100), columns=8).shape == (100 + 2 * GAP, 2 * 100 + 3 * GAP, 3)


def test_titles_add_a_strip_above_and_change_nothing_below(tmp_path: Path) -> None:
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = read(save_grid(images, tmp_path / "plain.png", columns=2))
    titled = read(save_grid(images, tmp_path / "titled.png", 2, ["one", "a title that is far too long for its column"]))
    strip = len(titled) - len(plain)
    np.testing.assert_array_equal(titled[strip:], plain)
    assert strip > 10 and (titled[:strip] < 200).any()
    with pytest.raises(ValueError, match="3 titles for 2 columns"):
        save_grid(images, tmp_path / "x.png", 2, ["a", "b", "c"])


def test_side_by_side_keeps_each_panel(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    panels = {name: torch.rand(4, 1, 8, 8, generator=generator) for name in ("teacher", "by hand", "learned")}
    whole = read(save_side_by_side(panels, tmp_path / "side.png", columns=2))
    sheets = [tile(images, 2).numpy() for images in panels.values()]
    strip, width = len(whole) - len(sheets[0]), sheets[0].shape[1]
    for i, sheet in enumerate(sheets):
        left = i * (width + 4 * GAP)
        np.testing.assert_array_equal(whole[strip:, left : left + width], sheet)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one as"):
        tile(torch.zeros(0, 1, 2, 2), 1)
    with pytest.raises(ValueError, match="columns = 0"):
        tile(torch.zeros(1, 1, 2, 2), 0)
    with pytest.raises(ValueError, match="no panel"):
        save_side_by_side({}, tmp_path / "x.png")


def test_a_trace_measures_against_the_exact_trajectory() -> None:
    model, noise = toy_mixture(), unit_noise(range(6), (1, 2, 2), torch.float64)
    coarse = trace(Traced("Euler", epd.rules.euler(), SIGMAS), model, noise)
    fine_sigmas = epd.schedules.polynomial(256, 0.02, 20.0)
    fine = trace(Traced("Heun", epd.rules.heun(), fine_sigmas), model, noise)
    assert coarse.states.shape == (5, 6, 1, 2, 2) and coarse.errors[0] < 1e-12
    assert max(fine.errors) < 1e-3 < coarse.errors[-1]
    end = fine.states[-1]
    rms = float((coarse.states[-1] - end).square().mean().sqrt())
    assert coarse.errors[-1] == pytest.approx(rms, rel=1e-2)


def test_trajectory_plot_is_a_picture_of_all_solvers(tmp_path: Path) -> None:
    model, noise = toy_mixture(), unit_noise(range(6), (1, 2, 2), torch.float64)
    short = epd.schedules.polynomial(2, 0.02, 20.0)
    solvers = [Traced("Euler", epd.rules.euler(), SIGMAS), Traced("ours", epd.rules.heun(), short, True)]
    one = read(trajectory_plot(model, solvers[:1], noise, list(range(6)), tmp_path / "one.png", samples=1))
    two = read(trajectory_plot(model, solvers, noise, list(range(6)), tmp_path / "two.png", samples=1))
    assert two.shape[1] == one.shape[1] and two.shape[0] - one.shape[0] == pytest.approx(0.98 * 160, abs=2)
