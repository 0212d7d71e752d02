"""Whether autograd sees what differences see, of x and of sigma."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import tiny_pipelines
from helpers.counting import counting
from helpers.pipeline_families import FAMILIES
from helpers.toy_models import toy_mixture
from torch import Tensor

from epd import GaussianMixture, limit_rows, own_model
from epd.denoisers.digits import digits, digits_exact
from epd.denoisers.gradients import has_gradients, model_has_gradients
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.noise import unit_noise
from epd.denoisers.preconditioning import edm
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


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_half_precision_rounds_in_the_input_is_no_missing_gradient(half: torch.dtype, dtype: torch.dtype) -> None:
    """Time has little to say here, and less than what rounding c_in x changes from one sigma to the next."""

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        time = timestep.reshape(-1, 1, 1, 1).tanh().to(x.dtype)
        return torch.tanh(2 * x.roll(1, -1) + 0.5 * x.roll(1, -2)) * (1 + time / 2)

    assert model_has_gradients(NetworkDenoiser(call, edm(0.5), (1, 65, 65), 0.02, 20.0, dtype=half), dtype)


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


def of_times(change: Callable[[Tensor], Tensor]) -> Model:
    """The digits' network, told changed times; its coefficients have true gradients, as has x."""
    network = digits()
    return replace(network, call=lambda x, t, rows: network.call(x, change(t), rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.detach(),
        torch.round,
        lambda t: torch.full_like(t, t[0].item()),
        lambda t: torch.from_numpy(t.detach().numpy().copy()),
    ],
    ids=["detached", "rounded", "float", "numpy"],
)
def test_a_network_whose_sigma_is_cut_off_has_no_true_gradients(
    change: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    assert model_has_gradients(of_times(lambda t: 1.0 * t), dtype) and not model_has_gradients(of_times(change), dtype)


@pytest.mark.parametrize("ndim", [0, 1])
def test_a_sigma_that_is_cut_off_in_one_shape_alone_is_noticed(ndim: int) -> None:
    """Steps ask with a 0-d sigma or with one a row, and a model may take only one of them through NumPy."""
    mixture = toy_mixture()
    x, sigma = unit_noise([0, 1], mixture.shape), torch.tensor(0.6, dtype=torch.float64)
    assert has_gradients(mixture, x, sigma)

    def cut_off(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture(x, sigma.detach() if sigma.ndim == ndim else sigma)

    assert not has_gradients(cut_off, x, sigma)


def test_a_sigma_that_is_cut_off_outside_the_network_is_noticed() -> None:
    """The coefficients alone depend on it: that of one Gaussian, of a number in the place of sigma."""

    def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.reshape(-1, 1, 1) ** 2)

    assert model_has_gradients(own_model(gaussian, (2, 3), 0.02, 20.0))
    assert not model_has_gradients(own_model(lambda x, s: gaussian(x, s.detach()), (2, 3), 0.02, 20.0))


def test_a_network_that_ignores_sigma_has_true_gradients() -> None:
    assert model_has_gradients(of_times(torch.zeros_like))
    assert model_has_gradients(own_model(lambda x, sigma: torch.tanh(x), (2, 3), 0.02, 20.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_pipelines_are_seen(name: str, dtype: torch.dtype) -> None:
    pipe = tiny_pipelines.build(name).to(dtype)
    assert model_has_gradients(FAMILIES[name].model(pipe, None if name == "ddpm" else 3.0))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_hide_a_network_that_is_cut_off(half: torch.dtype) -> None:
    """It is judged by less, as what autograd sees is rounded, too; in x or in time alone it is cut off all the same."""
    network = digits()

    def halved(change: Callable[[Tensor], Tensor], told: Callable[[Tensor], Tensor]) -> Model:
        call = lambda x, t, rows: change(network.call(x.float(), told(t), rows)).to(half)  # noqa: E731
        return replace(network, call=call, dtype=half)

    assert model_has_gradients(halved(lambda x: x, lambda t: t))
    assert not model_has_gradients(halved(Tensor.detach, lambda t: t))
    assert not model_has_gradients(halved(lambda x: x, Tensor.detach))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_probe_keeps_to_the_row_limit(rows: int) -> None:
    asked: list[int] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(len(x))
        return x / (1 + sigma.reshape(-1, 1, 1) ** 2)

    assert model_has_gradients(limit_rows(own_model(denoise, (2, 3), 0.02, 20.0), rows))
    assert set(asked) == {min(rows, 2)}


def test_a_step_into_another_mode_is_no_missing_gradient() -> None:
    """Five modes so far apart that a tenth of the noise level leads from one to another, and less changes nothing."""
    assert model_has_gradients(counting((1, 16, 16)), torch.float64)
    assert model_has_gradients(counting((1, 16, 16)), torch.float32)
