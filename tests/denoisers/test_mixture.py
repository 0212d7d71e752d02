"""The exact denoiser against brute force, closed forms and its own other precisions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

import epd
from epd.denoisers.protocol import Model, Path

SHAPE = (2, 3)
STDS, WEIGHTS = [0.3, 0.05, 1.1, 0.6], [0.1, 0.4, 0.3, 0.2]
LABELS = torch.tensor([0, 1, 0, 2])
PATHS: list[Path] = ["ve", "flow"]
SIGMAS: dict[Path, list[float]] = {"ve": [0.002, 0.3, 4.0, 80.0], "flow": [0.002, 0.3, 0.9, 1.0]}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEANS = normal(4, *SHAPE)


def mixture(path: Path = "ve", stds: list[float] | float = STDS) -> epd.GaussianMixture:
    return epd.GaussianMixture(MEANS, stds, WEIGHTS, path=path, labels=LABELS)


def states(mixed: epd.GaussianMixture, sigma: float, count: int = 6) -> Tensor:
    """States that the forward process really reaches, so that responsibilities are neither all 0 nor all 1."""
    alpha = 1.0 if mixed.path == "ve" else 1 - sigma
    clean = MEANS[torch.arange(count) % 4] + 0.4 * normal(count, *SHAPE, seed=1)
    return alpha * clean + sigma * normal(count, *SHAPE, seed=2)


def by_hand(x: Tensor, sigma: float, path: Path, stds: list[float], inside: list[int]) -> np.ndarray:
    """E[x0 | x], component by component, from the densities; one sample, chosen components."""
    alpha, flat, d = (1.0 if path == "ve" else 1 - sigma), x.flatten().numpy(), x.numel()
    logs, means = [], []
    for k in inside:
        mean, variance = MEANS[k].flatten().numpy(), stds[k] ** 2
        spread = alpha**2 * variance + sigma**2
        away = flat - alpha * mean
        logs.append(np.log(WEIGHTS[k]) - away @ away / (2 * spread) - d / 2 * np.log(2 * np.pi * spread))
        means.append(mean + alpha * variance / spread * away)
    shares = np.exp(np.array(logs) - max(logs))
    return (shares / shares.sum() @ np.array(means)).reshape(x.shape)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stds", [STDS, [0.5] * 4], ids=["unequal", "common"])
@pytest.mark.parametrize("level", range(4))
def test_posterior_mean_is_brute_force(path: Path, stds: list[float], level: int) -> None:
    mixed, sigma = mixture(path, stds), SIGMAS[path][level]
    x = states(mixed, sigma)
    expected = np.stack([by_hand(row, sigma, path, stds, [0, 1, 2, 3]) for row in x])
    np.testing.assert_allclose(mixed(x, torch.tensor(sigma, dtype=torch.float64)).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_one_number_for_all_stds_and_weights_is_the_row_of_it(path: Path) -> None:
    one = epd.GaussianMixture(MEANS, 0.5, path=path)
    row = epd.GaussianMixture(MEANS, [0.5] * 4, [3.0] * 4, path=path)  # weights are normalised
    x, sigma = states(one, 0.4), torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(one(x, sigma), row(x, sigma), rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
def test_each_row_may_have_its_own_sigma(path: Path) -> None:
    mixed, levels = mixture(path), torch.tensor(SIGMAS[path], dtype=torch.float64)
    x = torch.cat([states(mixed, float(s))[k : k + 1] for k, s in enumerate(levels)])
    together = mixed(x, levels)
    alone = torch.cat([mixed(row[None], sigma) for row, sigma in zip(x, levels, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def gaussian_end(x: Tensor, mean: Tensor, std: float, path: Path, first: float, last: float) -> Tensor:
    """For one Gaussian the flow is x(sigma) = alpha mean + sqrt(alpha^2 s^2 + sigma^2) z with z constant."""

    def frame(sigma: float) -> tuple[float, float]:
        alpha = 1.0 if path == "ve" else 1 - sigma
        return alpha, (alpha**2 * std**2 + sigma**2) ** 0.5

    (a0, r0), (a1, r1) = frame(first), frame(last)
    return a1 * mean + r1 / r0 * (x - a0 * mean)


@pytest.mark.parametrize("path", PATHS)
def test_ode_of_one_wide_gaussian_ends_where_the_closed_form_says(path: Path) -> None:
    first, last = {"ve": (4.0, 0.1), "flow": (1.0, 0.05)}[path]
    one, noise = epd.GaussianMixture(MEANS[:1], 1.3, path=path), normal(5, *SHAPE, seed=3)
    rule = epd.rules.ipndm(4, "computed")
    # Graded, because the first multistep steps have a low order.
    ramp = torch.linspace(0, 1, 3001, dtype=torch.float64) ** 2
    found = epd.solve(rule, one, noise, first + (last - first) * ramp)
    expected = gaussian_end(noise * first, MEANS[0], 1.3, path, first, last)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("path", PATHS)
def test_slope_of_one_gaussian_is_the_derivative_of_its_closed_form(path: Path) -> None:
    one, sigma, step = epd.GaussianMixture(MEANS[:1], 1.3, path=path), 0.6, 1e-5
    x = normal(5, *SHAPE, seed=3)
    ends = [gaussian_end(x, MEANS[0], 1.3, path, sigma, sigma + side) for side in (step, -step)]
    found = epd.slope(one, x, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_a_class_is_its_subset_of_components(path: Path) -> None:
    mixed, sigma, classes = mixture(path), 0.5, [0, 1, 2, 0, 1, 0]
    x = states(mixed, sigma)
    found = mixed.bind(classes)(x, torch.tensor(sigma, dtype=torch.float64))
    members = {c: [k for k in range(4) if int(LABELS[k]) == c] for c in range(3)}
    expected = [by_hand(row, sigma, path, STDS, members[c]) for row, c in zip(x, classes, strict=True)]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 7.5])
def test_guidance_extrapolates_from_the_unconditional_mean(guidance: float) -> None:
    mixed, sigma, classes = mixture(), torch.tensor(0.5, dtype=torch.float64), [0, 1, 2, 0, 1, 0]
    x = states(mixed, 0.5)
    free, tied = mixed(x, sigma), mixed.bind(classes)(x, sigma)
    bound = mixed.bind(classes, guidance)
    torch.testing.assert_close(bound(x, sigma), free + guidance * (tied - free), rtol=0, atol=1e-13)
    assert bound.guidance == guidance
    assert mixed.guidance == 1.0
    assert torch.equal(mixed(x, sigma), free)  # binding leaves the mixture as it was


def test_bound_rows_are_sample_major() -> None:
    mixed, sigma = mixture(), torch.tensor(0.5, dtype=torch.float64)
    x = states(mixed, 0.5)
    wide = mixed.bind([0, 1, 2], 3.0)(x, sigma)  # rows 0, 1 are of sample 0, rows 2, 3 of sample 1, ...
    assert torch.equal(wide, mixed.bind([0, 0, 1, 1, 2, 2], 3.0)(x, sigma))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("level", range(4))
def test_float32_agrees_with_float64_and_stays_float32(path: Path, level: int) -> None:
    for stds in (STDS, 0.5):
        mixed, sigma = mixture(path, stds), torch.tensor(SIGMAS[path][level], dtype=torch.float64)
        x = states(mixed, float(sigma)).float()
        found = mixed(x, sigma)
        assert found.dtype == torch.float32
        # Logits are |x|^2 / sigma^2-like numbers of up to 1e4 before the softmax.
        torch.testing.assert_close(found.double(), mixed(x.double(), sigma), rtol=0, atol=2e-4)


def test_sigma_zero_returns_the_clean_sample() -> None:
    mixed, x = mixture(), normal(3, *SHAPE, seed=5)
    torch.testing.assert_close(mixed(x, torch.tensor(0.0, dtype=torch.float64)), x, rtol=0, atol=1e-14)


def test_flow_at_sigma_one_returns_the_prior_mean() -> None:
    mixed, x = mixture("flow"), normal(3, *SHAPE, seed=5)
    prior = (torch.tensor(WEIGHTS, dtype=torch.float64) @ MEANS.flatten(1)).reshape(SHAPE)
    expected = prior.expand(3, *SHAPE)
    torch.testing.assert_close(mixed(x, torch.tensor(1.0, dtype=torch.float64)), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stds", [STDS, 0.5], ids=["unequal", "common"])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_derivatives(path: Path, stds: list[float] | float, per_row: bool, guided: bool) -> None:
    mixed = mixture(path, stds).bind([0, 1], guidance=1.7) if guided else mixture(path, stds)
    sigma = torch.tensor([0.5, 0.2] if per_row else 0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixed, (states(mixed, 0.5, 2).requires_grad_(), sigma))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_arithmetic_with_denormals(dtype: torch.dtype) -> None:
    """Far components' weights, and their products with a small gradient: three times the training time on some CPUs."""
    mixed = epd.GaussianMixture(MEANS, 0.05)
    x = (MEANS.to(dtype) * 1.01).requires_grad_()
    out = mixed(x, torch.tensor(0.002, dtype=torch.float64))
    weights = [t for t in out.grad_fn.next_functions[0][0].saved_tensors if t.shape == (4, 4)]  # type: ignore[union-attr]
    assert len(weights) == 1 and float(weights[0].max()) == 1.0
    assert float(weights[0].min()) * 1e-12 > torch.finfo(dtype).tiny  # unclamped they underflow to 0
    assert float(weights[0].min()) * len(MEANS) < torch.finfo(dtype).eps / 1e6


def test_it_is_a_model() -> None:
    mixed = mixture("flow")
    model: Model = mixed
    assert (model.path, model.shape, model.sigma_max, model.device) == ("flow", SHAPE, 1.0, "cpu")
    assert mixture().sigma_max == 80.0
    assert model.for_seeds([1, 2]) is mixed
    shown = mixed.decode(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]))
    assert shown.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_a_copy_is_independent_of_the_original() -> None:
    mixed, sigma = mixture(), torch.tensor(0.5, dtype=torch.float64)
    x = states(mixed, 0.5)
    expected = mixed(x, sigma)
    assert torch.equal(copy.deepcopy(mixed)(x, sigma), expected)


BROKEN = {
    "path = 'vp'": lambda: epd.GaussianMixture(MEANS, 1.0, path="vp"),  # type: ignore[arg-type]
    r"means must be finite with shape \(M, \*S\), got shape \(4,\)": lambda: epd.GaussianMixture(MEANS[:, 0, 0], 1.0),
    r"got shape \(0, 2, 3\)": lambda: epd.GaussianMixture(MEANS[:0], 1.0),
    "means must be finite": lambda: epd.GaussianMixture(MEANS / 0, 1.0),
    "stds must be 4 positive": lambda: epd.GaussianMixture(MEANS, [1.0, 2.0]),
    r"stds must be 4 positive.*0\.0": lambda: epd.GaussianMixture(MEANS, 0.0),
    "stds must be 4 positive.*nan": lambda: epd.GaussianMixture(MEANS, float("nan")),
    r"weights must be 4 positive.*-1": lambda: epd.GaussianMixture(MEANS, 1.0, [1, 1, 1, -1]),
    r"labels must have shape \(4,\)": lambda: epd.GaussianMixture(MEANS, 1.0, labels=LABELS[:3]),
    "no classes to bind": lambda: epd.GaussianMixture(MEANS, 1.0).bind([0]),
    r"labels \[0, 7\] hold a class that no component has": lambda: mixture().bind([0, 7]),
    "5 rows cannot be served by 2": lambda: mixture().bind([0, 1])(normal(5, *SHAPE), torch.tensor(1.0)),
    "0 rows cannot be served by 2": lambda: mixture().bind([0, 1])(normal(0, *SHAPE), torch.tensor(1.0)),
    "3 rows cannot be served by 0": lambda: mixture().bind([])(normal(3, *SHAPE), torch.tensor(1.0)),
}


@pytest.mark.parametrize("message", BROKEN)
def test_errors_name_the_value(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BROKEN[message]()
