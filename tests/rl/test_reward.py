"""Scores checked, and weighted sums of several rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from epd.rl.reward import Normalisation, RewardError, combined, measured, normalisation

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c"]


@dataclass
class Toy:
    function: Callable[[Tensor, Sequence[str]], object]
    name: str = "toy"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images, prompts)  # type: ignore[return-value]


def test_scores_are_float64_on_the_cpu_without_gradients() -> None:
    pictures = IMAGES.clone().requires_grad_()
    scores = measured(Toy(lambda images, prompts: images.mean((1, 2, 3))), pictures, PROMPTS)
    assert scores.dtype == torch.float64 and not scores.requires_grad
    assert torch.equal(scores, IMAGES.mean((1, 2, 3)).double())
    whole = measured(Toy(lambda images, prompts: torch.tensor([len(p) for p in prompts])), IMAGES, ["", "ab", "c"])
    assert whole.tolist() == [0.0, 2.0, 1.0]


def test_grey_pictures_get_three_channels_and_rounding_is_clamped() -> None:
    seen: list[Tensor] = []
    grey = torch.tensor([-1e-4, 0.5, 1 + 1e-4, 1.0]).reshape(1, 1, 2, 2)
    measured(Toy(lambda images, prompts: seen.append(images) or torch.zeros(1)), grey, ["a"])
    assert seen[0].shape == (1, 3, 2, 2)
    assert all(torch.equal(channel, grey.clamp(0, 1)[:, 0]) for channel in seen[0].unbind(1))


def test_no_pictures_have_no_scores() -> None:
    assert measured(Toy(lambda images, prompts: torch.zeros(0)), IMAGES[:0], []).shape == (0,)


def raises(error: BaseException) -> Toy:
    def function(images: Tensor, prompts: Sequence[str]) -> object:
        raise error

    return Toy(function)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raises(KeyError("weights")), r"reward toy failed on 3 pictures \(KeyError: 'weights'\): mend it"),
        (raises(torch.OutOfMemoryError("no memory")), "reward toy failed on 3 pictures .*no memory"),
        (Toy(lambda i, p: torch.tensor([0.0, float("nan"), 1.0])), r"toy gave scores\[1\] = nan, .* return a finite"),
        (Toy(lambda i, p: torch.tensor([0.0, 1.0, float("-inf")])), r"toy gave scores\[2\] = -inf"),
        (Toy(lambda i, p: torch.zeros(2)), r"toy returned shape \(2,\), torch.float32 for 3 pictures: return .*\(3,\)"),
        (Toy(lambda i, p: torch.zeros(3, 1)), r"toy returned shape \(3, 1\)"),
        (Toy(lambda i, p: torch.tensor(1.0)), r"toy returned shape \(\)"),
        (Toy(lambda i, p: torch.zeros(3, dtype=torch.complex64)), "torch.complex64"),
        (Toy(lambda i, p: [0.0, 1.0, 2.0]), "toy returned list for 3 pictures"),
        (Toy(lambda i, p: None), "toy returned NoneType"),
    ],
)
def test_whatever_a_reward_does_wrong_names_it_and_the_remedy(reward: Toy, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        measured(reward, IMAGES, PROMPTS)


def test_an_error_of_the_reward_itself_and_ctrl_c_pass() -> None:
    with pytest.raises(RewardError, match="^as it is$"):
        measured(raises(RewardError("as it is")), IMAGES, PROMPTS)
    with pytest.raises(KeyboardInterrupt):
        measured(raises(KeyboardInterrupt()), IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("pictures", "prompts", "message"),
    [
        (IMAGES[0], PROMPTS, r"images of shape \(3, 4, 4\)"),
        (IMAGES[:, :2], PROMPTS, r"give \(B, 3, H, W\)"),
        ((IMAGES * 255).byte(), PROMPTS, "torch.uint8"),
        (IMAGES, ["a"], "3 images and 1 prompts"),
        (IMAGES.clone().index_fill_(0, torch.tensor([1]), float("nan")), PROMPTS, r"images\[1\] .* not finite"),
        (IMAGES * 2 - 1, PROMPTS, r"images\[0\] .* out of \[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_refused(pictures: Tensor, prompts: list[str], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        measured(Toy(lambda i, p: torch.zeros(3)), pictures, prompts)


def test_the_weighted_sum_is_exact() -> None:
    raw = {"a": torch.tensor([1.0, 3.0, 5.0]), "b": torch.tensor([10.0, 30.0, 10.0], dtype=torch.float64)}
    scales = {"a": Normalisation(3.0, 2.0), "b": Normalisation(20.0, 10.0)}
    total = combined(raw, {"a": 0.5, "b": -2.0}, scales)
    assert total.dtype == torch.float64 and total.tolist() == [-0.5 + 2, -2.0, 0.5 + 2]


def test_normalisation_is_mean_and_spread_and_normalises() -> None:
    raw = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 7 + 3
    scale = normalisation(raw)
    assert scale.mean == pytest.approx(float(raw.mean()), abs=1e-12)
    assert scale.std == pytest.approx(float(raw.std(correction=0)))
    total = combined({"a": raw}, {"a": 1.0}, {"a": scale})
    assert abs(float(total.mean())) < 1e-12 and float(total.std(correction=0)) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e8, 1e-300, 0.3])
def test_a_constant_reward_adds_exactly_zero(value: float) -> None:
    raw = torch.full((7,), value, dtype=torch.float64)
    assert combined({"a": raw}, {"a": 3.0}, {"a": normalisation(raw)}).tolist() == [0.0] * 7


def test_what_a_once_constant_reward_gains_counts_in_its_own_unit() -> None:
    scale = normalisation(torch.zeros(8))
    assert combined({"a": torch.tensor([0.0, 1.0])}, {"a": 2.0}, {"a": scale}).tolist() == [0.0, 2.0]
    assert Normalisation(1.0, 1e-9).scale == 1.0 and Normalisation(0.0, 1e-9).scale == 1e-9


@pytest.mark.parametrize(
    ("raw", "weights", "scales", "message"),
    [
        ({}, {}, {}, "at least one"),
        ({"a": torch.zeros(2)}, {"b": 1.0}, {"a": Normalisation(0, 1)}, r"weights: \['b'\]"),
        ({"a": torch.zeros(2)}, {"a": 1.0}, {}, "of the same rewards"),
        ({"a": torch.zeros(2, 1)}, {"a": 1.0}, {"a": Normalisation(0, 1)}, r"shapes {'a': \(2, 1\)}"),
        ({"a": torch.zeros(2)}, {"a": float("nan")}, {"a": Normalisation(0, 1)}, "weights {'a': nan} are not finite"),
    ],
)
def test_sums_of_what_does_not_fit_are_refused(
    raw: dict[str, Tensor], weights: dict[str, float], scales: dict[str, Normalisation], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        combined(raw, weights, scales)
    with pytest.raises(ValueError, match="one"):
        normalisation(torch.zeros(0))
    with pytest.raises(ValueError, match="std = -1"):
        Normalisation(0.0, -1.0)


def test_rewards_of_other_lengths_are_refused() -> None:
    scales = {"a": Normalisation(0, 1), "b": Normalisation(0, 1)}
    with pytest.raises(ValueError, match=r"\(2,\).*\(1,\)"):
        combined({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": 1.0, "b": 1.0}, scales)
