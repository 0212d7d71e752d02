"""Which tokens are chosen, where they are in a picture, and in which calls: by hand, without a network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import epd
from epd.accelerators import planned
from epd.accelerators.regions import choose, spread, tokens_of


def test_the_plan_by_hand() -> None:
    """DPM-2 in 5 steps with half fans: the first fan is whole, as one slope at a state is known. 5 + 1 + 4 / 2 = 8."""
    sigmas = epd.schedules.logsnr(5, 0.01, 80.0)
    calls = planned.of_solve(epd.rules.dpm2(), sigmas)
    assert sum(work.tokens for work in epd.RAS(0.5, "fan").plan(calls)) == 8
    calls = planned.of_solve(epd.rules.euler(), epd.schedules.logsnr(28, 0.01, 80.0))
    whole = [n for n, work in enumerate(epd.RAS(0.5).plan(calls)) if work.tokens == 1]
    assert whole == [0, 1, 2, 3, 12, 20], "as published for 28 steps"
    late = [now for now in calls if now.step >= 2]  # of an image-to-image run
    assert [now.step for now, work in zip(late, epd.RAS(0.5).plan(late), strict=True) if work.tokens == 1] == [
        2, 3, 4, 5, 14, 22,
    ]  # fmt: skip
    other = epd.RAS(0.5, gap=None, resets=(12, 22), warmup=3)
    assert [n for n, work in enumerate(other.plan(calls)) if work.tokens == 1] == [0, 1, 2, 12, 22]


def lives(member: epd.RAS, steps: int = 28, tokens: int = 64) -> Tensor:
    """(steps, tokens) which of them are computed, where one sample's scores are the same in all steps."""
    scores = torch.linspace(1.0, 2.0, tokens)[None]
    drops, out = torch.zeros_like(scores), []
    high = 1.0 if member.high is None else member.high
    for _ in range(steps):
        active = choose(scores, drops, member.active(tokens), high, member.strength, member.starvation == "published")
        chosen = torch.zeros_like(scores).scatter(1, active, 1.0)
        drops = drops + (1 - chosen)
        out.append(chosen[0])
    return torch.stack(out)


@pytest.mark.parametrize("high", [0.0, 0.3, 1.0])
def test_nothing_starves_unless_as_published(high: float) -> None:
    assert lives(epd.RAS(0.5, high=high)).sum(0).min() > 0
    published = lives(epd.RAS(0.5, high=high, starvation="published"))
    assert (published.sum(0).min() == 0) == (high > 0)
    if high == 1.0:  # what is dropped at first is dropped for ever
        assert torch.equal(published, published[:1].expand_as(published))
    assert torch.equal(published.sum(1), torch.full((28,), 32.0))


def test_the_choice_by_hand() -> None:
    scores, none = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0, 6.0]]), torch.zeros(1, 6)

    def chosen(active: int, high: float, drops: Tensor = none, k: float = 1.0, published: bool = False) -> list[int]:
        return choose(scores, drops, active, high, k, published)[0].tolist()

    assert chosen(3, 0.0) == [0, 2, 5]
    assert chosen(3, 1.0) == [1, 3, 4]
    assert chosen(3, 0.34) == [0, 2, 4], "one of three from the top, the second number is the rest"
    assert chosen(6, 0.5) == [0, 1, 2, 3, 4, 5]
    dropped = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0, 3.0]])
    assert chosen(3, 0.0, dropped) == [0, 1, 5]
    assert chosen(3, 1.0, dropped) == [1, 3, 5]
    assert chosen(3, 1.0, dropped, published=True) == [2, 3, 4]


def test_tokens_are_patches_in_raster_order() -> None:
    """Of a picture of 6 x 4 pixels, and of the same one packed as FLUX does."""
    picture = torch.arange(2 * 3 * 24).float().view(2, 3, 6, 4)
    tokens = tokens_of(picture, 6)  # 3 x 2 patches of 2 x 2
    assert torch.equal(tokens[1, 3, 2], picture[1, 2, 2:4, 2:4].flatten())
    packed = tokens.flatten(2)
    assert torch.equal(tokens_of(packed, 6, 4), tokens)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 3] = True
    chosen = torch.zeros(2, 3, 6, 4, dtype=torch.bool)
    chosen[1, :, 2:4, 2:4] = True
    assert torch.equal(spread(mask, picture.shape[1:]).expand(2, 3, 6, 4), chosen)
    assert torch.equal(spread(mask, packed.shape[1:]), mask[..., None])
    for shape, count in (((2, 3, 6, 4), 7), ((2, 6, 12), 5), ((2, 3, 6, 4), 12)):
        with pytest.raises(ValueError, match="pictures that stand beside the state"):
            tokens_of(torch.zeros(shape), count)


def test_the_published_dynamic_ratio() -> None:
    """Of Lumina-Next's 4,096 tokens and 30 steps, by hand; and for few tokens at least one multiple is computed."""
    ratios = epd.falling_ratios(4096, 30)
    skips = [round((1 - ratio) * 4096) for ratio in ratios]
    assert skips[4:8] == [2048 - 3 * 256] * 4 and skips[16:20] == [2048] * 4 and skips[28:] == [2048 + 3 * 256] * 2
    member = epd.RAS(ratios, warmup=4)
    assert [member.active(4096, step, 30) for step in range(30)] == [4096 - skip for skip in skips]
    assert [member.share(step, 15) for step in range(15)] == list(ratios[::2]), "half as many steps: every other one"
    few = epd.falling_ratios(256, 16, 0.3)
    assert {round(ratio * 256) % 64 for ratio in few} == {0} and min(few) == 0.25 and max(few) == 1.0
    for settings in ({"ratio": 0.0}, {"every": 0}, {"tokens": 0}):
        with pytest.raises(ValueError, match="must"):
            epd.falling_ratios(**{"tokens": 64, "steps": 4, **settings})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ratio": (0.5, 1.5)}, "share of the tokens"),
        ({"ratio": ()}, "share of the tokens"),
        ({"ratio": 0.0}, "share of the tokens"),
        ({"ratio": 1.1}, "share of the tokens"),
        ({"where": "x"}, "'all' or 'fan'"),
        ({"score": "x"}, "'change' or"),
        ({"high": 2.0}, "share of the dropped"),
        ({"warmup": 0}, "nothing is known"),
        ({"gap": 0}, "no error resets"),
        ({"resets": (-1,)}, "from 0"),
        ({"starvation": "x"}, "'mended'"),
        ({"strength": float("nan")}, "0 to forget"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        epd.RAS(**{"ratio": 0.5, **settings})
