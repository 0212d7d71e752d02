"""What is checked of a model before anything long starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from epd import own_model
from epd.commands.models import LabelledMixture
from epd.denoisers.checks import ModelError, check_model
from epd.denoisers.digits import digits, digits_exact
from epd.denoisers.protocol import Model
from epd.distill.straightness import euler_distance


def own(denoise: Callable[..., object], **changes: object) -> Model:
    """A model of one function on samples (2, 3)."""
    values = {"shape": (2, 3), "sigma_min": 0.02, "sigma_max": 20.0, "name": "mine", **changes}
    return own_model(denoise, **values)  # type: ignore[arg-type]


def good(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of N(0, 1)."""
    return x / (1 + sigma.reshape(-1, 1, 1) ** 2)


@pytest.mark.parametrize(
    "model", [digits(), digits(2.0), digits_exact("flow"), own(good), LabelledMixture(digits_exact(), (3, 1), 1.5)]
)
def test_a_sound_model_passes(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    check_model(model)
    check_model(model, torch.float64, decode=True)
    assert not caplog.records


def of_the_first_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (1 + sigma[0] ** 2)


def shifted_by_the_batch(x: Tensor, sigma: Tensor) -> Tensor:
    return good(x, sigma) - x.mean(0)


def dropping(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.nn.functional.dropout(good(x, sigma), 0.5)


@pytest.mark.parametrize(
    ("denoise", "message"),
    [
        (lambda x, sigma: x[:, :1], r"mine returned torch.float32 \(2, 1, 3\) for torch.float32 \(2, 2, 3\)"),
        (lambda x, sigma: (x > 0).long(), "mine returned torch.int64"),
        (lambda x, sigma: x * math.nan, "mine returned NaN or infinity with sigma 0-d, .*check its range"),
        (lambda x, sigma: x / (sigma.reshape(-1, 1, 1) < 19), r"NaN or infinity .* sigma \[20.0, .* 0.02\]"),
        (
            lambda x, sigma: x * sigma,
            r"mine fails on x of shape \(2, 2, 3\) with sigma 0-d: .* reshaped to \(-1, 1, ...\)",
        ),
        (lambda x, sigma: x.numpy(), "the function returned ndarray, not a torch tensor: .* give numpy=True"),
        (dropping, r"mine gives two results for one input: switch dropout off \(network.eval\(\)\)"),
        (shifted_by_the_batch, "mine gives another result for a sample alone .* rows must be independent"),
        (of_the_first_sigma, "when two points of each are evaluated together: every row has its own noise level"),
    ],
)
def test_what_is_wrong_with_a_function_is_told_with_its_remedy(denoise: Callable[..., object], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=message):
        check_model(own(denoise))


@dataclass(frozen=True)
class Bare:
    """A model of its own kind, without any of our classes."""

    name: str = "bare"
    path: str = "ve"
    shape: tuple[float, ...] = (2, 3)
    sigma_min: float = 0.02
    sigma_max: float = 20.0
    guidance: float = 1.0
    device: str = "cpu"
    alphas_cumprod: None = None

    def for_seeds(self, seeds: Sequence[int]) -> Bare:
        return self

    def decode(self, x: Tensor) -> Tensor:
        return x

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return good(x, sigma).to(x.dtype)


class OneLevel(Bare):
    """It takes one noise level only."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + float(sigma) ** 2)


class LastLevel(Bare):
    """It reads one noise level where there are several."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + float(sigma) ** 2) if sigma.ndim == 0 else x


class Wider(Bare):
    """It returns float64, whatever the state is."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return good(x, sigma).double()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Bare(path="vp"),
            "bare: path = 'vp' is unknown, give 've' or 'flow'; a VP model is solved as 've' in x / alpha",
        ),
        (Bare(shape=()), r"bare: shape = \(\) must be the positive sizes of one sample"),
        (Bare(shape=(2.0, 3)), r"bare: shape = \(2.0, 3\)"),
        (Bare(sigma_min=0.0), "sigma_min = 0.0, sigma_max = 20.0: must be 0 < sigma_min < sigma_max"),
        (Bare(path="flow"), "sigma_max = 20.0: must be .* <= 1 on a flow path"),
        (OneLevel(), r"bare fails on x of shape \(2, 2, 3\) with sigma of shape \(2,\), a noise level for each row"),
        (LastLevel(), r"another result for sigma of shape \(2,\) than for 0-d, both of 0.632: reshape sigma"),
        (Wider(), "bare returned torch.float64"),
        (good, "function is no model, it has no name, path, shape, .*: make one with epd.own_model"),
    ],
)
def test_what_is_wrong_with_a_model_is_told_with_its_remedy(model: Model, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_model(model)


def test_a_condition_that_a_seed_does_not_keep_is_told() -> None:
    """Conditions by their place in the call, not by their seed."""
    model = own(good, bind=lambda seeds: lambda x, s: good(x, s) + torch.arange(len(seeds)).reshape(-1, 1, 1))
    with pytest.raises(ModelError, match="a seed's condition its own"):
        check_model(model)


def test_pictures_that_cannot_be_made_are_told_before_sampling() -> None:
    check_model(own(good, decode=lambda x: x[:1]))
    with pytest.raises(ModelError, match=r"decode made \(1, 2, 3\) of \(2, 2, 3\)"):
        check_model(own(good, decode=lambda x: x[:1]), decode=True)
    with pytest.raises(ModelError, match="fails to decode .*mend decode"):
        check_model(own(good, decode=lambda x: x.reshape(5, 5)), decode=True)


@pytest.mark.parametrize(
    "denoise",
    [
        lambda x, sigma: (x - good(x, sigma)) / sigma.reshape(-1, 1, 1),
        lambda x, sigma: (good(x, sigma) - x) / sigma.reshape(-1, 1, 1) ** 2,
    ],
    ids=["noise", "score"],
)
def test_noise_or_a_score_in_place_of_the_denoised_is_noticed(
    denoise: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    check_model(own(denoise))
    assert "does it return E[x0 | x], and not noise, a score or a velocity?" in caplog.text


def test_a_model_that_fits_one_row_at_a_time_is_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    def large(x: Tensor, sigma: Tensor) -> Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return good(x, sigma)

    check_model(own(large), decode=True)
    assert "mine: there is no memory for 4 rows at once, so not everything is checked" in caplog.text
    assert euler_distance(own(large)) is None


def test_the_check_is_cheap() -> None:
    rows = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        rows.append(len(x))
        return good(x, sigma)

    check_model(own(counted))
    assert rows == [2, 2, 1, 4]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("a"), "KeyError: 'a'"),
        (AttributeError("no foo"), "AttributeError: no foo"),
        (AssertionError(), "AssertionError"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (RuntimeError("bad sizes"), "sigma 0-d: bad sizes"),
    ],
)
def test_whatever_a_model_raises_is_one_sentence(error: Exception, message: str) -> None:
    def fails(*arguments: object) -> Tensor:
        raise error

    with pytest.raises(ModelError, match=f"fails on x of shape .*{message}"):
        check_model(own_model(fails, (2,), 0.1, 10.0))
    decoded = own_model(lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2), (2,), 0.1, 10.0, decode=fails)
    with pytest.raises(ModelError, match=f"fails to decode .*{message.removeprefix('sigma 0-d: ')}"):
        check_model(decoded, decode=True)


@pytest.mark.parametrize("device", ["gpu0", "xpu:99"])
def test_a_device_that_is_not_there_is_one_sentence(device: str) -> None:
    model = own_model(lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2), (2,), 0.1, 10.0, device=device)
    with pytest.raises(ModelError, match=f"device = '{device}' is not there: "):
        check_model(model)


@pytest.mark.parametrize("shape", [(1.5, 8), 8])
def test_a_size_that_is_no_integer_is_refused(shape: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="must be the integer sizes of one sample"):
        own_model(lambda x, sigma: x, shape, 0.1, 10.0)
