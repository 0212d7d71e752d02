r"""How a raw network becomes a denoiser: D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

Every parameterisation is one function of sigma that returns these four coefficients; nothing else differs.
With alpha = 1 / sqrt(1 + sigma^2), networks on a variance-preserving schedule see alpha x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .timesteps import Timesteps

NetworkCoefficients = tuple[Tensor, Tensor, Tensor, Tensor]  # c_skip, c_out, c_in, c_noise, all shaped like sigma
Preconditioning = Callable[[Tensor], NetworkCoefficients]
Prediction = Literal["epsilon", "v_prediction", "sample"]


def edm(sigma_data: float = 0.5) -> Preconditioning:
    r"""EDM: with s^2 = sigma^2 + sigma_data^2, (sigma_data^2 / s^2, sigma sigma_data / s, 1 / s, ln(sigma) / 4).

    Args:
        sigma_data: standard deviation of the training data, > 0.

    Reference: arXiv 2206.00364, Table 1 and Eq. 7.
    """
    if not 0 < sigma_data < float("inf"):
        raise ValueError(f"sigma_data = {sigma_data} must be positive and finite: the data's standard deviation")

    def coefficients(sigma: Tensor) -> NetworkCoefficients:
        total = sigma**2 + sigma_data**2
        root = total.sqrt()
        return sigma_data**2 / total, sigma * sigma_data / root, 1 / root, sigma.log() / 4

    return coefficients


def continuous_v() -> Preconditioning:
    """SVD's network: v as of `v_prediction`, told ln(sigma) / 4 as of EDM: x0 = alpha^2 x - alpha sigma v.

    Reference: arXiv 2311.15127, Appendix D.
    """

    def coefficients(sigma: Tensor) -> NetworkCoefficients:
        alpha = (sigma * sigma + 1).rsqrt()
        return alpha * alpha, -alpha * sigma, alpha, sigma.log() / 4

    return coefficients


def epsilon(times: Timesteps) -> Preconditioning:
    """The network predicts the noise: x0 = x - sigma eps. Reference: arXiv 2006.11239, Eq. 11."""
    return lambda sigma: (torch.ones_like(sigma), -sigma, (sigma * sigma + 1).rsqrt(), times.timestep(sigma))


def v_prediction(times: Timesteps) -> Preconditioning:
    """The network predicts v = alpha eps - alpha sigma x0: x0 = alpha^2 x - alpha sigma v.

    Reference: arXiv 2202.00512, Appendix D.
    """

    def coefficients(sigma: Tensor) -> NetworkCoefficients:
        alpha = (sigma * sigma + 1).rsqrt()
        return alpha * alpha, -alpha * sigma, alpha, times.timestep(sigma)

    return coefficients


def sample(times: Timesteps) -> Preconditioning:
    """The network predicts x0 itself. Reference: arXiv 2202.00512, Section 4."""
    return lambda sigma: (
        torch.zeros_like(sigma), torch.ones_like(sigma), (sigma * sigma + 1).rsqrt(), times.timestep(sigma)
    )  # fmt: skip


def flow(time_scale: float = 1000.0) -> Preconditioning:
    """Rectified flow on x = (1 - sigma) x0 + sigma eps, v = eps - x0: x0 = x - sigma v, timestep = time_scale sigma.

    Args:
        time_scale: what the network calls sigma = 1.

    Reference: arXiv 2209.03003, Eq. 1; arXiv 2403.03206, Section 3.1.
    """
    return lambda sigma: (torch.ones_like(sigma), -sigma, torch.ones_like(sigma), time_scale * sigma)


def vp_sigma(time: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    r"""sigma(t) = sqrt(exp(t^2 (beta_max - beta_min) / 2 + t beta_min) - 1) of a continuous-time VP model, float64.

    A model's `sigma_min` and `sigma_max` are those of its first trained time and of t = 1.

    Args:
        time: (any shape), in [0, 1].

    Reference: arXiv 2011.13456, Eq. 33, with sigma = std / alpha.
    """
    t = torch.as_tensor(time, dtype=torch.float64)
    return (t * t * (beta_max - beta_min) / 2 + t * beta_min).expm1().sqrt()


def vp(
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    prediction: Literal["epsilon", "score", "v"] = "epsilon",
    first_time: float = 1e-5,
    time_scale: float = 1.0,
) -> Preconditioning:
    r"""A continuous-time VP model, trained on z = alpha x0 + std eps with std^2 = 1 - alpha^2 and t in [first_time, 1].

    log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2. The state here is x = z / alpha, so sigma =
    std / alpha, alpha = 1 / sqrt(1 + sigma^2) and, with L = log(1 + sigma^2) = -2 log alpha,
    t = 2 L / (beta_min + sqrt(beta_min^2 + 2 (beta_max - beta_min) L)), held within [first_time, 1].

    The network is called as F(alpha x, time_scale t). `epsilon`: x0 = x - sigma F; `score`, F = -eps / std:
    x0 = x + alpha sigma^2 F; `v`, F = alpha eps - std x0: x0 = alpha^2 x - alpha sigma F.

    Args:
        beta_min, beta_max: beta(0) > 0 and beta(1) >= beta_min of the linear beta(t).
        prediction: what the network returns.
        first_time: smallest time that it was trained on, in [0, 1).
        time_scale: what it calls t = 1; 999 or 1000 for many.

    Raises:
        ValueError: for an unknown prediction, or numbers out of range.

    Reference: arXiv 2011.13456, Appendix B and C; arXiv 2202.00512, Appendix D (v).
    """
    if not 0 < beta_min <= beta_max < float("inf"):
        raise ValueError(f"beta_min = {beta_min}, beta_max = {beta_max}: must be 0 < beta_min <= beta_max, finite")
    if not 0 <= first_time < 1:
        raise ValueError(f"first_time = {first_time} must be in [0, 1): the smallest time of training")
    if prediction not in ("epsilon", "score", "v"):
        raise ValueError(f"prediction = {prediction!r} is unknown: give 'epsilon', 'score' or 'v'")

    def coefficients(sigma: Tensor) -> NetworkCoefficients:
        alpha = (sigma * sigma + 1).rsqrt()
        rise = (sigma * sigma).log1p()
        time = 2 * rise / (beta_min + (beta_min**2 + 2 * (beta_max - beta_min) * rise).sqrt())
        c_noise = time_scale * time.clamp(first_time, 1.0)
        if prediction == "v":
            return alpha * alpha, -alpha * sigma, alpha, c_noise
        return torch.ones_like(sigma), -sigma if prediction == "epsilon" else alpha * sigma**2, alpha, c_noise

    return coefficients


def discrete(prediction: Prediction, times: Timesteps) -> Preconditioning:
    """The preconditioning of a discrete-time network, by diffusers' name of what it predicts.

    Args:
        prediction: `epsilon`, `v_prediction` or `sample`.
        times: of the schedule that it was trained on.

    Raises:
        ValueError: for an unknown prediction type.
    """
    by_name = {"epsilon": epsilon, "v_prediction": v_prediction, "sample": sample}
    if prediction not in by_name:
        raise ValueError(f"prediction = {prediction!r} is unknown: give one of {', '.join(by_name)}")
    return by_name[prediction](times)
