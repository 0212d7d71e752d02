"""The discriminator tells what it can tell, starts undecided, and is learned beside a policy to the same bits."""

from __future__ import annotations

import pytest
import torch
from helpers.toy_acceleration import constant, toy_acceleration_config
from helpers.toy_refine import toy_task
from torch import Tensor

from epd.rl.acceleration import AccelerationTrainer
from epd.rl.discriminator import Discriminator, features_of
from epd.rl.reward import RewardError


def pixels(images: Tensor) -> Tensor:
    return images[:, 0].flatten(1).double()


def trainer(**changes: object) -> AccelerationTrainer:
    config = toy_acceleration_config(**{"discriminator": 1.0, "reward_shift": None, **changes})
    return AccelerationTrainer(toy_task({"constant": constant}), None, config, features=pixels)


def test_it_starts_undecided_and_learns_to_tell() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, other = (torch.randn(200, 8, generator=generator) + shift for shift in (torch.eye(8)[0] * 2, 0.0))
    discriminator = Discriminator(8)
    assert torch.equal(discriminator.real(plain), torch.full((200,), 0.5, dtype=torch.float64))
    assert float(discriminator.loss(plain, other[:50]).detach()) == pytest.approx(0.6931472)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        discriminator.loss(plain[:100], other[:50]).backward()
        optimizer.step()
    assert float(discriminator.real(plain[100:]).mean()) > 0.7 > 0.4 > float(discriminator.real(other[100:]).mean())


def test_what_it_says_is_earned_beside_the_reward() -> None:
    own = trainer(steps=1)
    (update,) = own.updates()
    assert update.scalars["discriminator/real"] == 0.5 and update.scalars["discriminator/loss"] == pytest.approx(
        0.6931472
    )
    draws = own.task.draw(4, 4, True, torch.Generator().manual_seed(0))
    _, _, real, parts = own._sampled(draws, list(range(16)))
    assert bool((real != 0.5).all()) and parts[0].pair is not None and len(parts[0].pair.plain) == 4
    assert update.state.judge_steps == 1 and not torch.equal(update.state.judge[0], own.first().judge[0])


def test_it_goes_on_to_the_same_bits() -> None:
    whole = list(trainer(accumulate=2).updates())
    again = list(trainer(accumulate=2).updates(whole[1].state))
    assert torch.equal(whole[-1].state.judge, again[-1].state.judge) and whole[-1].scalars == again[-1].scalars
    assert torch.equal(whole[-1].state.vector, again[-1].state.vector)


def test_features_that_are_none_are_refused() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert features_of(pixels, images).shape == (3, 16)
    for wrong, told in (
        (lambda x: x, "return"),
        (lambda x: pixels(x) / 0, "finite"),
        (lambda x: x[:1, 0, 0], "return"),
    ):
        with pytest.raises(RewardError, match=told):
            features_of(wrong, images)
    with pytest.raises(ValueError, match="needs features"):
        AccelerationTrainer(toy_task(), None, toy_acceleration_config(discriminator=1.0))
    with pytest.raises(ValueError, match="has no use for features"):
        AccelerationTrainer(toy_task(), None, toy_acceleration_config(), features=pixels)
