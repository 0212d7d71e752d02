"""Distances between features: against closed forms, torchmetrics and brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from epd.evaluation.feature_metrics import kernel_distance, precision_recall, some_rows
from epd.evaluation.metrics import Moments, frechet, moments


def draw(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_frechet_of_gaussians_that_share_their_axes() -> None:
    """|m_a - m_b|^2 + sum_i (sqrt a_i - sqrt b_i)^2 of the variances along them; one of them is 0."""
    axes = torch.linalg.qr(draw(4, 4, 0)).Q
    a, b = (torch.tensor(values, dtype=torch.float64) for values in ([4.0, 1.0, 0.25, 0.0], [9.0, 1.0, 1.0, 0.49]))
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    expected = float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    of_a, of_b = Moments(shift, axes * a @ axes.T), Moments(torch.zeros(4, dtype=torch.float64), axes * b @ axes.T)
    assert frechet(of_a, of_b) == pytest.approx(expected, abs=1e-6)  # the root of a singular matrix
    assert frechet(of_b, of_a) == pytest.approx(expected, abs=1e-6)


def test_moments_over_many_blocks_of_rows_far_from_zero() -> None:
    features = draw(1300, 3, 1, shift=1e4)
    found = moments(features.float())  # as they are kept
    torch.testing.assert_close(found.mean, features.float().double().mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.covariance, features.float().double().T.cov(), rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_kernel_distance_of_all_features_is_that_of_torchmetrics() -> None:
    a, b = draw(40, 6, 0), draw(40, 6, 1, shift=0.3)
    theirs = KernelInceptionDistance(feature=nn.Identity(), subsets=3, subset_size=40)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    expected, spread = theirs.compute()
    assert kernel_distance(a, b, 3, 40) == (pytest.approx(float(expected), rel=1e-6), pytest.approx(float(spread)))


def test_kernel_distance_of_subsets_is_theirs_of_the_same_ones() -> None:
    a, b = draw(50, 6, 0), draw(70, 6, 1, shift=0.3)
    generator, values = torch.Generator().manual_seed(7), []
    for _ in range(5):
        x, y = (rows[torch.randperm(len(rows), generator=generator)[:20]] for rows in (a, b))
        values.append(poly_mmd(x, y))
    expected = torch.stack(values)
    found = kernel_distance(a, b, 5, 20, seed=7)
    assert found == pytest.approx((float(expected.mean()), float(expected.std(correction=0))), rel=1e-10)
    assert found != kernel_distance(a, b, 5, 20, seed=8)


def test_kernel_distance_is_unbiased() -> None:
    """Of equal distributions, its mean over many draws is 0 and not the 2 k / m of the biased one."""
    values = torch.tensor([kernel_distance(draw(12, 2, i), draw(12, 2, 1000 + i), 1, 12)[0] for i in range(400)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 20 and bool((values < 0).any())


def inside(points: Tensor, manifold: Tensor, k: int) -> float:
    """By the definition, a point at a time."""
    count = 0
    for point in points:
        for center in manifold:
            radius = (manifold - center).square().sum(1).sqrt().sort().values[k]  # the first is itself
            if (point - center).square().sum().sqrt() <= radius:
                count += 1
                break
    return count / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epd.evaluation.feature_metrics.BLOCK", 7)
    real, generated = draw(40, 3, 0), draw(30, 3, 1) * 0.4 + 0.5
    found = precision_recall(real, generated, k)
    assert found == (inside(generated, real, k), inside(real, generated, k))
    assert found[0] > found[1] > 0  # narrow samples: most are like the data, and few of the data are like them


def test_what_is_the_same_is_within_and_what_is_far_is_not() -> None:
    a = draw(20, 4, 0)
    assert precision_recall(a, a.clone()) == (1.0, 1.0) and precision_recall(a, a + 100) == (0.0, 0.0)


def test_some_rows_are_drawn_at_random_and_stay_in_order() -> None:
    rows = torch.arange(100.0)[:, None]
    found = some_rows(rows, 30)[:, 0]
    assert len(found) == 30 and bool((found.diff() > 0).all()) and found.max() > 60
    assert torch.equal(found, some_rows(rows, 30)[:, 0]) and not torch.equal(found, some_rows(rows, 30, seed=1)[:, 0])
    assert some_rows(rows, 100) is rows


def test_too_few_and_those_of_another_width() -> None:
    a = draw(10, 3, 0)
    with pytest.raises(ValueError, match=r"shapes \(10, 3\) and \(10, 2\)"):
        kernel_distance(a, a[:, :2], 1, 5)
    with pytest.raises(ValueError, match="of 11 out of 10 and 10 features"):
        kernel_distance(a, a, 1, 11)
    with pytest.raises(ValueError, match="3 nearest neighbours need more than 3 features"):
        precision_recall(a, a[:3])
    with pytest.raises(ValueError, match="N >= 2"):
        moments(a[:1])
