"""Guidance that is scaled at an evaluation: another bound guidance, per row, in parts; and who has none to scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.guided import LABELS, classes, guided_network
from helpers.recording import elementwise, normal
from torch import Tensor

import epd
from epd.denoisers.checks import require_guided
from epd.denoisers.protocol import Guided, denoised_at
from epd.denoisers.rows import limit_rows
from epd.denoisers.shapes_exact import shapes_exact

FACTORS = torch.tensor([0.5, 1.0, 2.0, 1.0 / 3.0, 0.1], dtype=torch.float64)
SIGMA = torch.tensor([0.3, 1.0, 2.0, 5.0, 0.6], dtype=torch.float64)
X = normal(5, 2, 3)
PROMPTS = ["a red cross above a blue square", "a red cross", "a blue square", "a blue cross", "a red square"]


def bound(name: str, guidance: float) -> epd.Denoiser:
    if name == "shapes-exact":
        return shapes_exact().bind(PROMPTS, guidance)
    return guided_network().bind([1, 2, 3, 4, 5], guidance) if name == "network" else classes().bind(LABELS, guidance)


MODELS = ["mixture", "network", "shapes-exact"]


def state(name: str) -> Tensor:
    return normal(5, 3, 16, 16) if name == "shapes-exact" else X


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_factor_is_another_bound_guidance_row_by_row(name: str, dtype: torch.dtype) -> None:
    x, tolerance = state(name).to(dtype), 1e-12 if dtype == torch.float64 else 1e-5
    model = bound(name, 3.0)
    assert isinstance(model, Guided)
    rows = model.at_guidance(x, SIGMA, FACTORS)
    assert rows.dtype == dtype
    for i, factor in enumerate(FACTORS.tolist()):
        expected = bound(name, 3.0 * factor)(x, SIGMA)
        torch.testing.assert_close(model.at_guidance(x, SIGMA, FACTORS[i]), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(rows[i], expected[i], rtol=tolerance, atol=tolerance)
    assert torch.equal(denoised_at(model, x, SIGMA, None), model(x, SIGMA))


@pytest.mark.parametrize("name", MODELS)
def test_the_derivative_by_a_factor_is_the_difference_of_both_halves(name: str) -> None:
    x, factor = state(name), FACTORS.clone().requires_grad_()
    model = bound(name, 3.0)
    assert isinstance(model, Guided)
    free, conditional = bound(name, 1e-12)(x, SIGMA), bound(name, 1.0)(x, SIGMA)
    model.at_guidance(x, SIGMA, factor).sum().backward()
    assert factor.grad is not None
    expected = 3.0 * (conditional - free).flatten(1).sum(1)
    torch.testing.assert_close(factor.grad, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7])
def test_parts_have_the_factors_of_their_own_rows(limit: int) -> None:
    """Two points a sample, sample-major."""
    x, sigma = normal(10, 2, 3), SIGMA.repeat_interleave(2)
    factors, seeds = torch.linspace(0.2, 2.0, 10, dtype=torch.float64), [3, 1, 4, 1, 5]
    for model in (classes(), guided_network()):
        whole, parts = model.for_seeds(seeds), limit_rows(model, limit).for_seeds(seeds)
        for factor in (factors, factors[3]):
            expected = denoised_at(whole, x, sigma, factor)
            torch.testing.assert_close(denoised_at(parts, x, sigma, factor), expected, rtol=1e-12, atol=1e-12)


def test_a_limited_model_that_is_bound_beforehand_is_split_too() -> None:
    whole = replace(guided_network(), seed_rows=None).bind([1], 3.0)
    for factor in (FACTORS, FACTORS[0]):
        expected = whole.at_guidance(X, SIGMA, factor)
        torch.testing.assert_close(limit_rows(whole, 2).at_guidance(X, SIGMA, factor), expected)


def test_who_has_no_guidance_says_so() -> None:
    one = torch.ones((), dtype=torch.float64)
    unguided = "is bound with guidance 1, .*bind it with another guidance, or take a table whose guidance_scale"
    for model in (bound(name, 1.0) for name in MODELS):
        with pytest.raises(ValueError, match=unguided):
            denoised_at(model, state(model.name), SIGMA, one)  # type: ignore[attr-defined]
    for model in (classes(), guided_network(), shapes_exact()):  # not bound: no condition
        with pytest.raises(ValueError, match=unguided):
            denoised_at(model, state(model.name), SIGMA, one)
    with pytest.raises(ValueError, match=r"of function is to be scaled, and it has no at_guidance\(x, sigma, factor\)"):
        denoised_at(elementwise, X, SIGMA, one)


def test_a_model_is_asked_once_beforehand() -> None:
    require_guided(limit_rows(classes()))
    require_guided(guided_network())
    for refused in (classes(guidance=1.0), limit_rows(replace(guided_network(), guidance=1.0))):
        with pytest.raises(ValueError, match="bind it with another guidance"):
            require_guided(refused)
    with pytest.raises(ValueError, match="no at_guidance"):
        require_guided(limit_rows(epd.own_model(elementwise, (2, 3), 0.1, 10.0)))
