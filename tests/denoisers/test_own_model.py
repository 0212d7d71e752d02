"""`own_model`: any function as a model, with gradients and without, on every path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import epd
from epd.denoisers.checks import check_model
from epd.denoisers.gradients import model_has_gradients

MEAN, STD = 0.3, 0.7
EXACT = epd.GaussianMixture(torch.full((1, 2, 3), MEAN, dtype=torch.float64), STD)
EXACT_FLOW = epd.GaussianMixture(torch.full((1, 2, 3), MEAN, dtype=torch.float64), STD, path="flow")


def ve(x: Tensor, sigma: Tensor) -> Tensor:
    sigma = sigma.reshape(-1, 1, 1)
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def flow(x: Tensor, sigma: Tensor) -> Tensor:
    alpha, sigma = 1 - sigma.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def vp(z: Tensor, sigma: Tensor) -> Tensor:
    """In the model's own state z = alpha x0 + std eps."""
    alpha = (1 + sigma.reshape(-1, 1, 1) ** 2) ** -0.5
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + 1 - alpha**2) * (z - alpha * MEAN)


@pytest.mark.parametrize("numpy", [False, True])
@pytest.mark.parametrize(
    ("denoise", "path", "exact"), [(ve, "ve", EXACT), (flow, "flow", EXACT_FLOW), (vp, "vp", EXACT)]
)
def test_a_function_is_the_denoiser_that_it_computes(
    denoise: Callable[[Tensor, Tensor], Tensor], path: str, exact: epd.GaussianMixture, numpy: bool
) -> None:
    def of_arrays(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        assert isinstance(x, np.ndarray) and x.dtype == sigma.dtype
        return denoise(torch.from_numpy(x), torch.from_numpy(sigma)).numpy()

    function = of_arrays if numpy else denoise
    model = epd.own_model(function, (2, 3), 0.02, exact.sigma_max, path=path, numpy=numpy)  # type: ignore[arg-type]
    assert model.path == exact.path
    check_model(model, torch.float64)
    levels = torch.tensor([0.02, 0.3, 0.7, exact.sigma_max], dtype=torch.float64)
    x = epd.unit_noise(range(4), model.shape, torch.float64)
    torch.testing.assert_close(model(x, levels), exact(x, levels), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(x, levels[1]), exact(x, levels[1]), rtol=1e-12, atol=1e-12)
    assert model(x.bfloat16(), levels).dtype == torch.bfloat16
    assert model_has_gradients(model) is not numpy


def test_a_function_gets_one_level_a_row_in_the_dtype_of_the_state() -> None:
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((sigma.dtype, tuple(sigma.shape)))
        return ve(x, sigma)

    model = epd.own_model(denoise, (2, 3), 0.02, 80.0)
    assert model(torch.zeros(3, 2, 3), torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float32
    model(torch.zeros(3, 2, 3, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64))
    assert seen == [(torch.float32, (3,)), (torch.float64, (3,))]
    with pytest.raises(ValueError, match="sigma must be 0-d or have one entry per row of x, 3"):
        model(torch.zeros(3, 2, 3), torch.ones(2))


def test_gradients_flow_through_state_and_noise_level() -> None:
    model = epd.own_model(vp, (2, 3), 0.02, 80.0, path="vp")
    x = epd.unit_noise([0, 1], (2, 3), torch.float64).requires_grad_()
    sigma = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x, sigma))


def test_seeds_bind_conditions_for_any_number_of_points() -> None:
    bound = []

    def bind(seeds: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        bound.append(list(seeds))
        shift = torch.tensor(seeds, dtype=torch.float64).reshape(-1, 1, 1)
        return lambda x, sigma: ve(x, sigma) + shift.to(x.dtype)

    model = epd.own_model(ve, (2, 3), 0.02, 80.0, bind=bind)
    denoiser, x, sigma = model.for_seeds([5, 7]), torch.zeros(6, 2, 3), torch.tensor(0.5)
    added = (denoiser(x, sigma) - model(x, sigma))[:, 0, 0].tolist()
    assert added == pytest.approx([5, 5, 5, 7, 7, 7])
    assert (denoiser(x[:2], sigma) - model(x[:2], sigma))[:, 0, 0].tolist() == pytest.approx([5, 7])
    denoiser(x, sigma)
    assert bound == [[5, 5, 5, 7, 7, 7], [5, 7]], "each is bound once"
    with pytest.raises(ValueError, match="a call of 3 rows cannot be served by 2 bound conditions"):
        denoiser(x[:3], sigma)
    check_model(model)


def test_finished_states_are_decoded() -> None:
    x = torch.tensor([[[-1.0, 0.0, 3.0]]])
    assert epd.own_model(ve, (1, 3), 0.1, 1.0).decode(x).tolist() == [[[0.0, 0.5, 1.0]]]
    assert epd.own_model(ve, (1, 3), 0.1, 1.0, decode=lambda x: x[:, None]).decode(x).shape == (1, 1, 1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "edm"}, "path = 'edm' is unknown: give 've', 'flow' or 'vp'"),
        ({"shape": ()}, r"shape = \(\) must be the sizes of one sample"),
        ({"shape": (3, 0)}, r"shape = \(3, 0\)"),
        ({"sigma_min": 0.0}, "sigma_min = 0.0, sigma_max = 80.0: must be 0 < sigma_min < sigma_max < infinity"),
        ({"path": "flow"}, "sigma_max = 80.0: must be 0 < sigma_min < sigma_max <= 1"),
    ],
)
def test_what_is_out_of_range_is_named(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"shape": (2, 3), "sigma_min": 0.02, "sigma_max": 80.0, **changes}
    with pytest.raises(ValueError, match=message):
        epd.own_model(ve, **values)  # type: ignore[arg-type]


def test_arrays_of_integers_are_refused() -> None:
    model = epd.own_model(lambda x, sigma: x.astype(int), (2, 3), 0.02, 80.0, numpy=True, name="whole")
    with pytest.raises(ValueError, match="whole: the function returned int64, not an array of floating point numbers"):
        model(torch.zeros(2, 2, 3), torch.tensor(1.0))
