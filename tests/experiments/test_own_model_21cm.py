"""The example of a published score network, with a network in its place: the package is the reader's to install."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import epd
from epd.denoisers.checks import check_model
from epd.experiments import own_model_21cm

SIZES = (4, 3)


class Network(torch.nn.Module):
    """The exact noise for data that are the condition itself: eps = (z - alpha x0) / std, as published."""

    def forward(self, x: Tensor, time: Tensor, x_cdn: Tensor) -> Tensor:
        t = (time / 999).reshape(-1, 1, 1, 1)
        log_alpha = -0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1
        return (x - log_alpha.exp() * x_cdn) / (1 - (2 * log_alpha).exp()).sqrt()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> epd.NetworkDenoiser:
    package = ModuleType("psdenoiser")
    k_perp, k_par = (SimpleNamespace(value=np.linspace(0.02, 1.0, size)) for size in SIZES)
    constants = SimpleNamespace(
        kperp=k_perp, kpar=k_par, modes=np.full(SIZES, 30.0), noisy_bias=np.array([-4.0]), noisy_scale=np.array([13.6])
    )
    package.__dict__.update(Denoiser=lambda device: SimpleNamespace(model=Network()), denoiser_csts=constants)
    monkeypatch.setitem(sys.modules, "psdenoiser", package)
    return own_model_21cm.make()


def test_the_network_is_asked_as_it_was_trained(model: epd.NetworkDenoiser) -> None:
    check_model(model, decode=True)
    assert model.shape == (1, *SIZES) and model.seed_rows is not None
    seeds = [0, 1, 2]
    noise = epd.unit_noise(seeds, model.shape, torch.float64)
    end = epd.solve(epd.rules.euler(), model.for_seeds(seeds), noise, [model.sigma_max, 1.0, model.sigma_min])
    rows = model.seed_rows(seeds)
    assert isinstance(rows, dict)
    # Where the denoiser is a constant, Euler is exact: the end is that constant and what is left of the noise.
    torch.testing.assert_close(end, rows["noisy"].double() + noise * model.sigma_min, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_script_learns_and_compares(
    model: epd.NetworkDenoiser, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_model_21cm, "RESULT", tmp_path / "result.json")
    short = lambda **options: epd.DistillConfig(**{**options, "screening": 1})  # noqa: E731
    monkeypatch.setattr(own_model_21cm, "DistillConfig", short)
    options = "--calls 2 3 --iterations 1 --solvers Euler iPNDM-2".split()
    monkeypatch.setattr(sys, "argv", ["own_model_21cm", "--out", str(tmp_path / "run"), *options])
    own_model_21cm.main()
    cells = json.loads((tmp_path / "result.json").read_text())["cells"]
    assert {cell["solver"] for cell in cells} == {"dense-1-2", "dense-1-3", "Euler", "iPNDM-2"}
    assert all(cell["rmse"] < 0.02 for cell in cells), "the denoiser is a constant: every consistent solver is exact"
    assert epd.Table.load(tmp_path / "run" / "3-calls" / "solver.json").provenance.model == "21cmPSDenoiser"


def test_conditions_are_spectra_of_their_seed(model: epd.NetworkDenoiser) -> None:
    assert model.seed_rows is not None
    rows, alone = model.seed_rows([4, 9]), model.seed_rows([9])
    assert isinstance(rows, dict) and isinstance(alone, dict)
    assert torch.equal(rows["noisy"][1:], alone["noisy"]) and not torch.equal(rows["noisy"][0], rows["noisy"][1])
    assert rows["noisy"].shape == (2, 1, *SIZES) and float(rows["noisy"].abs().max()) < 1
