"""Distances against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from epd.evaluation.metrics import bootstrap_interval, extract, frechet_distance, rmse, sample_errors
from epd.runs.environment import environment


def draw(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix


def exact_moments(count: int, mean: float, variance: float) -> Tensor:
    """One feature with exactly this mean and (unbiased) variance."""
    x = torch.linspace(-1, 1, count, dtype=torch.float64)
    return (mean + x * (variance / x.var()).sqrt())[:, None]


def test_rmse_by_hand() -> None:
    assert rmse(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])) == pytest.approx((25 / 2) ** 0.5)
    x, end = draw(1300, 3, 0), draw(1300, 3, 1)  # more than are looked at together
    assert rmse(x, end) == pytest.approx(float((x - end).square().mean().sqrt()), rel=1e-12)
    with pytest.raises(ValueError, match="same samples"):
        rmse(torch.zeros(2, 2), torch.zeros(1, 2))


def test_errors_of_samples_make_up_the_rmse() -> None:
    x, end = draw(1300, 3, 0), draw(1300, 3, 1)
    errors = sample_errors(x.reshape(1300, 1, 3, 1), end.reshape(1300, 1, 3, 1))
    assert errors.shape == (1300,) and float(errors[7]) == pytest.approx(rmse(x[7:8], end[7:8]), rel=1e-12)
    assert float(errors.square().mean().sqrt()) == pytest.approx(rmse(x, end), rel=1e-12)
    with pytest.raises(ValueError, match="same samples"):
        sample_errors(x, end[:, :2])


def test_the_interval_is_that_of_theory() -> None:
    """Squares of unit normals have mean 1 and variance 2, so their mean is within 1.96 (2 / N)^1/2 of 1, 95 in 100."""
    count = 4000
    errors = torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    low, high = (bound**2 for bound in bootstrap_interval(errors))
    mean, deviation = float(errors.square().mean()), float(errors.square().std())
    assert deviation == pytest.approx(2**0.5, rel=0.1)
    for bound, sign in ((low, -1), (high, 1)):
        assert (bound - mean) * sign == pytest.approx(1.96 * deviation / count**0.5, rel=0.12)
    narrow = bootstrap_interval(errors, 0.5)
    assert low**0.5 < narrow[0] < mean**0.5 < narrow[1] < high**0.5


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    intervals = [bootstrap_interval(torch.randn(200, generator=generator), resamples=200) for _ in range(300)]
    assert 0.90 < sum(low <= 1 <= high for low, high in intervals) / 300 < 0.98


def test_equal_errors_leave_no_doubt_and_one_outlier_much() -> None:
    equal = torch.full((500,), 0.25)
    assert bootstrap_interval(equal) == (0.25, 0.25)
    equal[3] = 10.0
    low, high = bootstrap_interval(equal)
    assert low == pytest.approx(0.25) and high > 0.7  # it is drawn up to thrice


def test_an_interval_is_the_same_every_time_however_many_are_resampled_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = draw(700, 1, 4)[:, 0]
    once = bootstrap_interval(errors)
    assert bootstrap_interval(errors) == once != bootstrap_interval(errors, seed=1)
    monkeypatch.setattr("epd.evaluation.metrics.DRAWN", 7000)
    assert bootstrap_interval(errors) == pytest.approx(once, rel=0.02)


def test_frechet_of_two_gaussians_in_closed_form() -> None:
    a, b = exact_moments(50, 1.0, 4.0), exact_moments(70, -2.0, 9.0)
    assert frechet_distance(a, b) == pytest.approx(9 + (3 - 2) ** 2, rel=1e-12)


@pytest.mark.parametrize("count", [500, 5])
def test_frechet_against_scipy_and_with_fewer_samples_than_features(count: int) -> None:
    a, b = draw(count, 8, 0), draw(400, 8, 1) + 0.3
    ca, cb = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    # A regular neighbour of the singular case is what SciPy can do.
    root = np.real(np.asarray(sqrtm((ca + 1e-12 * np.eye(8)) @ cb)))
    expected = float(((a.mean(0) - b.mean(0)) ** 2).sum()) + np.trace(ca + cb - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    # The root of a singular matrix turns a rounding of 1e-16 into one of 1e-8, on some processors.
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9 if count > 8 else 1e-7)


def test_frechet_of_a_set_with_itself_is_zero_and_shifts_count_squared() -> None:
    a = draw(300, 6, 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(6 * 0.25, rel=1e-9)


def test_features_come_in_batches_and_in_float64() -> None:
    seen: list[int] = []

    def features(x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        seen.append(len(x))
        return x.flatten(1)[:, :3]

    samples = torch.randn(10, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = extract(features, samples, batch=4)
    assert seen == [4, 4, 2] and out.dtype == torch.float64
    assert torch.equal(out, samples.float().flatten(1)[:, :3].double())


@pytest.mark.parametrize("a, b", [((4, 3), (4, 2)), ((1, 3), (4, 3))])
def test_what_cannot_be_compared(a: tuple[int, int], b: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="features"):
        frechet_distance(torch.zeros(a), torch.zeros(b))


def test_environment_says_what_it_was() -> None:
    told = environment()
    assert told["torch"] == torch.__version__ and told["threads"] == torch.get_num_threads() and told["processor"]
