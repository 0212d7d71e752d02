"""Continuous-time VP models: the oracle is the exact score of Gaussian data, written in the model's own time."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

import epd
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.preconditioning import vp, vp_sigma

Prediction = Literal["epsilon", "score", "v"]
MEAN, STD = 0.3, 0.7
BETAS = [(0.1, 20.0), (0.5, 0.5)]


def marginal(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """alpha and std of z_t as published: mean coefficient and standard deviation of the VP SDE."""
    log_alpha = -0.25 * t**2 * (high - low) - 0.5 * t * low
    return log_alpha.exp(), (1 - (2 * log_alpha).exp()).sqrt()


def exact_network(prediction: Prediction, low: float, high: float, time_scale: float = 1.0) -> epd.NetworkDenoiser:
    """A network that knows the exact answer for data N(MEAN, STD^2), in z and t alone."""

    def call(z: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        alpha, std = (part.reshape(-1, 1, 1, 1) for part in marginal(timestep / time_scale, low, high))
        score = -(z - alpha * MEAN) / (alpha**2 * STD**2 + std**2)
        eps = -std * score
        return {"score": score, "epsilon": eps, "v": alpha * eps - std * (z - std * eps) / alpha}[prediction]

    ends = vp_sigma(torch.tensor([1e-3, 1.0]), low, high).tolist()
    return NetworkDenoiser(
        call,
        vp(low, high, prediction, 0.0, time_scale),
        (1, 4, 4),
        ends[0],
        ends[1],
        dtype=torch.float64,
    )


@pytest.mark.parametrize(("low", "high"), BETAS)
@pytest.mark.parametrize("prediction", ["epsilon", "score", "v"])
def test_the_denoiser_is_that_of_gaussian_data(prediction: Prediction, low: float, high: float) -> None:
    network = exact_network(prediction, low, high, time_scale=999.0)
    exact = epd.GaussianMixture(torch.full((1, 1, 4, 4), MEAN, dtype=torch.float64), STD)
    levels = torch.linspace(math.log(network.sigma_min), math.log(network.sigma_max), 7, dtype=torch.float64).exp()
    x = epd.unit_noise(range(7), network.shape, torch.float64) * levels.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(network(x, levels), exact(x, levels), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("low", "high"), BETAS)
def test_time_and_sigma_are_inverse_and_time_stays_where_it_was_trained(low: float, high: float) -> None:
    times = torch.linspace(1e-4, 1, 50, dtype=torch.float64)
    alpha, std = marginal(times, low, high)
    sigma = vp_sigma(times, low, high)
    torch.testing.assert_close(sigma, std / alpha, rtol=1e-9, atol=0)
    c_skip, _, c_in, c_noise = vp(low, high, "score", first_time=0.0, time_scale=1000.0)(sigma)
    torch.testing.assert_close(c_noise, 1000 * times, rtol=1e-9, atol=0)
    torch.testing.assert_close(c_in, alpha, rtol=1e-9, atol=0)
    assert bool((c_skip == 1).all())
    held = vp(low, high, first_time=1e-3)(torch.tensor([1e-6, 1e6], dtype=torch.float64))[3]
    assert held.tolist() == [1e-3, 1.0]


def test_a_solve_reaches_the_exact_end() -> None:
    network = exact_network("score", 0.1, 20.0)
    noise = epd.unit_noise(range(8), network.shape, torch.float64)
    sigmas = epd.schedules.polynomial(200, network.sigma_min, network.sigma_max)
    end = epd.solve(epd.rules.heun(), network, noise, sigmas)
    # dx/dsigma of N(MEAN, STD^2) is linear: x - MEAN scales with sqrt(STD^2 + sigma^2).
    scale = [math.sqrt(STD**2 + s**2) for s in (network.sigma_min, network.sigma_max)]
    expected = MEAN + (noise * network.sigma_max - MEAN) * scale[0] / scale[1]
    torch.testing.assert_close(end, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "x0"}, "prediction = 'x0' is unknown: give 'epsilon', 'score' or 'v'"),
        ({"beta_min": 0.0}, "beta_min = 0.0"),
        ({"beta_max": 0.01}, "0 < beta_min <= beta_max"),
        ({"first_time": 1.0}, r"first_time = 1.0 must be in \[0, 1\)"),
    ],
)
def test_what_is_out_of_range_is_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vp(**change)  # type: ignore[arg-type]


def test_a_path_that_is_none_is_refused_and_not_taken_for_flow() -> None:
    with pytest.raises(ValueError, match="path = 'vp' is unknown, give 've' or 'flow'; a VP network is 've' here"):
        NetworkDenoiser(lambda x, t, rows: x, vp(), (1, 4, 4), 0.01, 150.0, path="vp")  # type: ignore[arg-type]
