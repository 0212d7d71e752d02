"""`epd.distill` from Python, and how straight an ODE is before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture

import epd
from epd.denoisers.checks import ModelError
from epd.distill import straightness
from epd.distill.straightness import euler_distance, report_straightness


def test_a_table_is_learned_in_one_call_with_files_or_without(cache: Path, tmp_path: Path) -> None:
    model, config = toy_mixture(), toy_config(iterations=2, schedule="polynomial", validation=64)
    alone = epd.distill(model, config)
    assert alone.depth == 3 and alone.provenance.model == "toy" and list(tmp_path.iterdir()) == [cache]
    kept = epd.distill(model, config, tmp_path / "run")
    assert kept == alone == epd.Table.load(tmp_path / "run" / "solver.json")
    assert epd.distill(model, config, str(tmp_path / "run"), resume=True) == kept
    with pytest.raises(ValueError, match="already holds a run"):
        epd.distill(model, config, tmp_path / "run")
    with pytest.raises(ValueError, match="resume = True needs out="):
        epd.distill(model, config, resume=True)
    again = epd.distill(model, toy_config(iterations=2, validation=64), init=kept)
    assert again.num_steps == kept.num_steps
    comparison = epd.compare(model, {"kept": kept}, (3,), samples=32, batch=32, solvers=["Euler"])
    assert comparison.dtype == "float32" and {cell.solver for cell in comparison.cells} >= {"kept", "Euler"}


def test_a_model_that_cannot_be_solved_is_refused_before_the_teacher(cache: Path) -> None:
    model = epd.own_model(lambda x, sigma: x[:, :1], (2, 2), 0.1, 10.0)
    with pytest.raises(ModelError, match="own model returned"):
        epd.distill(model, toy_config())
    with pytest.raises(ModelError, match="own model returned"):
        epd.compare(model, {}, (3,))
    assert not cache.exists()


def one_point(path: str) -> epd.GaussianMixture:
    """Nearly all data in one place: every trajectory is nearly a straight line."""
    return epd.GaussianMixture(torch.ones(1, 1, 4, 4), 0.001, path=path, name="point")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_a_straight_ode_has_little_to_learn(path: str, caplog: pytest.LogCaptureFixture) -> None:
    report_straightness(one_point(path))
    assert "point: Euler at 5 calls is already within 0.0" in caplog.text and "little to learn" in caplog.text


def test_a_bent_one_has_its_distance_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = epd.GaussianMixture(torch.zeros(1, 1, 4, 4), 0.5, name="wide")
    noise = epd.unit_noise([0, 1], model.shape)
    exact = noise * 80 * ((0.5**2 + 0.002**2) / (0.5**2 + 80**2)) ** 0.5  # the ODE of one Gaussian is linear
    euler = epd.solve(epd.rules.euler(), model, noise, epd.schedules.polynomial(5))
    true = float((euler - exact).norm() / exact.norm())
    distance = euler_distance(model) or 0.0
    assert distance == pytest.approx(true, rel=0.05)
    report_straightness(model)
    assert f"wide: Euler at 5 calls is {100 * distance:.3g} % away" in caplog.text and "little" not in caplog.text


def test_a_slow_model_is_not_asked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(straightness, "PATIENCE", 0.0)
    caplog.set_level("INFO")
    report_straightness(one_point("ve"))
    assert "point is too large for a look at how straight its ODE is" in caplog.text
