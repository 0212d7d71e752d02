"""What is checked of a model before anything long starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.toy_models import toy_mixture
from torch import Tensor

from epd import GaussianMixture
from epd.denoisers.checks import has_gradients, model_has_gradients
from epd.denoisers.digits import digits, digits_exact
from epd.denoisers.networks import Rows
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Model


@pytest.mark.parametrize(
    "model",
    [digits(), digits(2.0), digits_exact(), digits_exact("flow"), GaussianMixture(torch.zeros(1, 1, 4, 4), 0.5)],
    ids=["network", "guided network", "mixture", "flow", "one Gaussian"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_are_there_are_seen(model: Model, dtype: torch.dtype) -> None:
    assert model_has_gradients(model, dtype)


def test_gradients_of_a_half_precision_network_are_seen() -> None:
    network = digits()
    half = replace(network, call=lambda x, t, rows: network.call(x.float(), t, rows).bfloat16(), dtype=torch.bfloat16)
    assert model_has_gradients(half)


@torch.no_grad()
def without_gradients(x: Tensor, timestep: Tensor, rows: object) -> Tensor:
    return torch.tanh(x.flip(-1)) * timestep.reshape(-1, 1, 1, 1).tanh()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_through_the_skip_term_alone_are_none(dtype: torch.dtype) -> None:
    network = digits()
    x = unit_noise([0, 1], network.shape, dtype)
    sigma = torch.tensor(1.0, dtype=torch.float64)
    for call in (
        without_gradients,
        lambda x, t, rows: network.call(x, t, rows).detach(),
        lambda x, t, rows: torch.from_numpy(network.call(x, t, rows).detach().numpy()),
    ):
        cut = replace(network, call=call)
        assert cut(x.clone().requires_grad_(), sigma).requires_grad, "the skip term is what hides it"
        assert not has_gradients(cut, x, sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_is_detached_in_part_has_no_true_gradients(dtype: torch.dtype) -> None:
    """The upper half of every picture is cut off: what autograd sees is about half of what changes."""

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        upper, lower = network.call(x, timestep, rows).chunk(2, 2)
        return torch.cat([upper.detach(), lower], 2)

    network = digits()
    assert model_has_gradients(network, dtype) and not model_has_gradients(replace(network, call=call), dtype)


def test_what_is_not_finite_is_no_question_of_gradients() -> None:
    x = unit_noise([0, 1], (1, 2, 2))
    assert has_gradients(lambda x, sigma: x * math.nan, x, torch.tensor(1.0))


def test_a_denoiser_under_no_grad_has_no_gradients() -> None:
    mixture = toy_mixture()
    x = unit_noise([0, 1], mixture.shape)
    assert not has_gradients(lambda x, sigma: mixture(x, sigma).detach(), x, torch.tensor(1.0))


def test_the_probe_leaves_gradient_mode_and_input_alone() -> None:
    mixture, x = toy_mixture(), unit_noise([0, 1], (1, 2, 2))
    with torch.no_grad():
        assert has_gradients(mixture, x, torch.tensor(1.0)) and not torch.is_grad_enabled()
    assert not x.requires_grad and x.grad is None
