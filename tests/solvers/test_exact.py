"""The converged solution: two integrators, closed forms, golden ends, and what may go wrong."""

from __future__ import annotations

import pytest
import torch
from helpers import golden
from torch import Tensor

import epd
from epd.denoisers.protocol import Path
from epd.solvers.exact import converged, cross_check

NOISE = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
GRIDS: dict[Path, Tensor] = {
    "ve": epd.schedules.polynomial(4),
    "flow": epd.schedules.flow_shift(4, shift=2.0),
}


def mixture(path: Path) -> epd.GaussianMixture:
    means = torch.tensor([[1.3, -0.6], [-0.8, 1.1], [0.4, 0.9]])
    return epd.GaussianMixture(means, [0.3, 0.5, 0.2], [0.5, 0.3, 0.2], path=path)


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_two_integrators_agree_at_every_sigma(path: Path) -> None:
    found = converged(mixture(path), NOISE, GRIDS[path], 1e-11, 1e-11)
    proof = cross_check(mixture(path), NOISE, GRIDS[path], 1e-12, 1e-12)
    assert found.shape == (5, 6, 2) and torch.equal(proof[0], NOISE * GRIDS[path][0])
    torch.testing.assert_close(found, proof, rtol=0, atol=1e-8)


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_one_gaussian_in_closed_form(path: Path) -> None:
    """x - alpha mu scales with the standard deviation sqrt(alpha^2 s^2 + sigma^2) of x."""
    mean, std, grid = torch.tensor([[0.7, -1.2]], dtype=torch.float64), 0.6, GRIDS[path]
    alpha = torch.ones_like(grid) if path == "ve" else 1 - grid
    spread = (alpha**2 * std**2 + grid**2).sqrt()[:, None, None]
    centre = alpha[:, None, None] * mean
    expected = centre + spread / spread[0] * (NOISE * grid[0] - centre[0])
    found = converged(epd.GaussianMixture(mean, std, path=path), NOISE, grid, 1e-11, 1e-11)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_golden_ends() -> None:
    m, noise = golden.mixture(), torch.tensor(golden.noise())
    net = epd.GaussianMixture(torch.tensor(m["mu"]), torch.tensor(m["s"]), torch.tensor(m["w"]))
    case = next(c for c in golden.cases() if c.net == "edm" and (c.sigma_min, c.sigma_max) == (0.002, 80.0))
    end = converged(net, noise, [80.0, 0.002], 1e-11, 1e-11)[-1]
    torch.testing.assert_close(end, torch.tensor(golden.exact_ends()[case.exact_key]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_error_follows_the_tolerance_and_a_sample_does_not_feel_its_batch(tolerance: float) -> None:
    proof = converged(mixture("ve"), NOISE, [80.0, 0.002], 1e-12, 1e-12)[-1]
    whole = converged(mixture("ve"), NOISE, [80.0, 0.002], tolerance, tolerance)[-1]
    alone = torch.cat([converged(mixture("ve"), row[None], [80.0, 0.002], tolerance, tolerance)[-1] for row in NOISE])
    assert float((whole - proof).abs().max()) < 10 * tolerance
    assert float((whole - alone).abs().max()) < 10 * tolerance


def test_intermediate_sigmas_do_not_move_the_end_and_nothing_is_asked_outside() -> None:
    told: list[float] = []

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        told.append(float(sigma))
        return mixture("ve")(x, sigma)

    many = converged(net, NOISE, epd.schedules.polynomial(9), 1e-9, 1e-9)[-1]
    two = converged(net, NOISE, [80.0, 0.002], 1e-9, 1e-9)[-1]
    torch.testing.assert_close(many, two, rtol=0, atol=1e-7)
    assert min(told) >= 0.002 * (1 - 1e-12) and max(told) <= 80 * (1 + 1e-12)


def test_dtype_is_that_of_the_noise() -> None:
    single = converged(mixture("ve"), NOISE.float(), [80.0, 0.002], 1e-6, 1e-6)
    assert single.dtype == torch.float32
    whole = converged(mixture("ve"), NOISE.float().double(), [80.0, 0.002], 1e-6, 1e-6)
    torch.testing.assert_close(single, whole.float(), rtol=0, atol=0)


def test_nan_names_its_sigma() -> None:
    def net(x: Tensor, sigma: Tensor) -> Tensor:
        return x * 0 if float(sigma) > 1 else x * float("nan")

    for solver in (converged, cross_check):
        with pytest.raises(FloatingPointError, match="NaN or infinity at sigma 0"):
            solver(net, NOISE, [80.0, 0.002])


def test_a_rough_denoiser_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epd.solvers.exact.MAX_STEPS", 50)
    generator = torch.Generator().manual_seed(0)

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    with pytest.raises(FloatingPointError, match="cannot be met"):
        converged(net, NOISE, [80.0, 0.002], 1e-9, 1e-9)


def test_shape_and_sigmas_are_checked() -> None:
    with pytest.raises(ValueError, match="returned shape"):
        converged(lambda x, sigma: x[:, :1], NOISE, [80.0, 0.002])
    for sigmas, message in (([1.0, 0.0], "end above 0"), ([1.0, 2.0], "must decrease")):
        with pytest.raises(ValueError, match=message):
            converged(mixture("ve"), NOISE, sigmas)
