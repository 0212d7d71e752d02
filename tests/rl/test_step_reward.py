"""What a trajectory earns: the closed form against the sum, published numbers, and the trap of negative rewards."""

from __future__ import annotations

import pytest
import torch

from epd.rl.step_reward import discount, discounted, quality_of, with_spread


@pytest.mark.parametrize("decay", [0.9, 0.97, 0.5, 1.0])
def test_the_closed_form_is_the_sum(decay: float) -> None:
    for calls in (1, 2, 7, 28):
        mean = sum(decay ** (calls - j) for j in range(1, calls + 1)) / calls
        assert float(discount(torch.tensor(calls), decay)) == pytest.approx(mean, rel=1e-12)


def test_published_numbers() -> None:
    calls = torch.tensor([28.0, 10.0])
    torch.testing.assert_close(discount(calls, 0.97), torch.tensor([0.683, 0.875]).double(), atol=5e-4, rtol=0)
    torch.testing.assert_close(discount(calls, 0.90), torch.tensor([0.338, 0.651]).double(), atol=5e-4, rtol=0)


def test_it_falls_smoothly_between_whole_numbers() -> None:
    values = discount(torch.linspace(0.5, 30, 60), 0.9)
    assert bool((values.diff() < 0).all()) and float(values[1]) == 1.0


def test_a_negative_quality_would_earn_more_by_more_calls_unless_it_is_shifted() -> None:
    calls, bad = torch.tensor([5.0, 20.0]), torch.tensor([-1.0, -1.0]).double()
    few, many = discounted(quality_of(bad, None), calls, 0.9)
    assert many > few  # as published
    few, many = discounted(quality_of(bad, 2.5), calls, 0.9)
    assert few > many
    assert not discounted(quality_of(bad, 0.5), calls, 0.9).any()


def test_the_discriminator_is_discounted_too() -> None:
    calls, quality, real = torch.tensor([4.0]), torch.tensor([0.5]), torch.tensor([0.25])
    expected = (0.5 + 2 * 0.25) * discount(calls, 0.9)
    torch.testing.assert_close(discounted(quality, calls, 0.9, real, 2.0), expected)


def test_groups_without_spread_are_told() -> None:
    assert with_spread(torch.tensor([[1.0, 1.0], [0.0, 1e-12], [2.0, 2.0]])).tolist() == [False, True, False]


@pytest.mark.parametrize(("calls", "decay", "told"), [(1.0, 0.0, "decay"), (1.0, 1.1, "decay"), (0.0, 0.9, "calls")])
def test_what_makes_no_sense_is_refused(calls: float, decay: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        discount(torch.tensor([calls]), decay)
