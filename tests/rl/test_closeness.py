"""Closeness to the converged end: gradients, precision, and that what is kept changes no bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.toy_models import toy_mixture
from torch import Tensor

from epd.denoisers.noise import unit_noise
from epd.denoisers.own_model import own_model
from epd.denoisers.protocol import Denoiser
from epd.denoisers.rows import limit_rows
from epd.rl import closeness as module
from epd.rl.closeness import Closeness
from epd.rl.task import Draws, Rollout


def rollout(model: object, noises: Sequence[int], dtype: torch.dtype = torch.float64) -> Rollout:
    """States that are all zero: their closeness is the size of the end points."""
    states = torch.zeros(len(noises), *toy_mixture().shape, dtype=dtype)
    return Rollout(model, Draws(tuple(noises), tuple(noises)), [""] * len(noises), states)  # type: ignore[arg-type]


def test_a_network_that_can_be_trained_leaves_no_gradients() -> None:
    """Of an integration's hundred calls they would fill the memory."""
    network = torch.nn.Linear(4, 4)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return network(x.flatten(1).float()).reshape(x.shape).to(x.dtype)

    model = own_model(denoise, shape=(1, 2, 2), sigma_min=0.1, sigma_max=2.0, path="ve")
    scores = Closeness(model, 1e-3)(rollout(model, [1, 2]))
    assert not scores.requires_grad


def test_end_points_are_asked_for_in_the_precision_of_the_states() -> None:
    """A Gaussian's end is known: x sqrt((s^2 + sigma_min^2) / (s^2 + sigma_max^2)); float32 would not get there."""
    low, high, spread = 0.1, 2.0, 0.5

    def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (spread**2 / (spread**2 + sigma**2)).reshape(-1, 1, 1, 1)

    model = own_model(gaussian, shape=(1, 2, 2), sigma_min=low, sigma_max=high, path="ve")
    scores = Closeness(model, 1e-11)(rollout(model, [3, 4, 5]))
    shrunk = high * ((spread**2 + low**2) / (spread**2 + high**2)) ** 0.5
    exact = shrunk * unit_noise([3, 4, 5], (1, 2, 2), torch.float64).flatten(1).square().mean(1).sqrt()
    assert torch.allclose(scores, -exact, rtol=1e-9)


def test_samples_of_a_group_share_one_end_and_keep_their_order() -> None:
    model = limit_rows(toy_mixture())
    scores = Closeness(model, 1e-6)(rollout(model, [7, 7, 3, 7, 3]))
    alone = Closeness(model, 1e-6)(rollout(model, [3]))
    assert scores[0] == scores[1] == scores[3] and scores[2] == scores[4]
    assert float(scores[2]) == pytest.approx(float(alone), rel=1e-4)


def test_what_is_still_kept_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on has nothing kept; one that was never stopped has, and has lost some of it."""
    model, held_out = limit_rows(toy_mixture()), list(range(64))
    fresh = Closeness(model, 1e-3)(rollout(model, held_out))
    monkeypatch.setattr(module, "KEPT", 80 * 4)
    used = Closeness(model, 1e-3)
    assert torch.equal(used(rollout(model, held_out)), fresh)
    used(rollout(model, list(range(1000, 1020))))  # as an update's would be
    assert torch.equal(used(rollout(model, held_out)), fresh)
    assert sum(len(pairs) for pairs in used._ends) <= 80


def test_large_samples_are_solved_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Watched:
        name, path, shape, device = "toy", "ve", (1, 2, 2), "cpu"
        sigma_min, sigma_max, guidance, alphas_cumprod = 0.1, 2.0, 1.0, None

        def for_seeds(self, seeds: Sequence[int]) -> Denoiser:
            seen.append(len(seeds))
            return lambda x, sigma: x / 2

    monkeypatch.setattr(module, "block_size", lambda numbers: 4)
    Closeness(Watched(), 1e-3)(rollout(Watched(), list(range(10))))  # type: ignore[arg-type]
    assert seen == [4, 4, 2]
