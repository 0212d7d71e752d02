"""The verifier of `shapes` against renderings, whose truth is known, and pictures with one thing wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epd.denoisers.shapes_verifier import verify
from epd.denoisers.shapes_world import draw, layouts, parse, prompt_of, prompts, render, scenes

PROMPT = "a red cross above a blue square"


def world(count: int) -> tuple[Tensor, list[str]]:
    texts = [prompt_of(seed) for seed in range(count)]
    return render(texts, torch.Generator().manual_seed(0)), texts


def one(prompt: str, number: int = 0) -> Tensor:
    """(1, 3, 16, 16): a layout of a prompt."""
    scene = parse(prompt)
    return draw(scene, layouts(scene)[number][None])


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_renderings_are_what_they_show_and_nothing_else(count: int) -> None:
    images, texts = world(count)
    verdict = verify(images, texts)
    assert bool((verdict.all == 1).all()) and bool((verdict.frac == 1).all())
    assert float(verdict.graded.min()) > 0.99 and float(verdict.graded.mean()) == pytest.approx(0.998, abs=1e-3)
    others = [*texts[1:], texts[0]]
    mismatched = verify(images, others)
    same = [parse(text).canonical == parse(other).canonical for text, other in zip(texts, others, strict=True)]
    assert float(mismatched.all.mean()) <= 0.025
    assert (mismatched.all == 1).tolist() == same  # the only ones are the same prompt by chance
    assert float(mismatched.graded.mean()) < 0.5


@pytest.mark.slow
def test_every_layout_of_every_scene_is_verified() -> None:
    for scene in scenes():
        allowed = layouts(scene)
        assert bool((verify(draw(scene, allowed), [scene.prompt] * len(allowed)).all == 1).all()), scene.prompt


def test_scores_are_of_each_picture_alone() -> None:
    images, texts = world(1000)
    noisy = (images + 0.08 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    whole = verify(noisy, texts)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(2))
    shuffled = verify(noisy[order], [texts[k] for k in order])
    for score, other in zip((whole.all, whole.frac, whole.graded), (shuffled.all, shuffled.frac, shuffled.graded),
                            strict=True):  # fmt: skip
        assert score.shape == (1000,) and score.dtype == torch.float32
        torch.testing.assert_close(score[order], other, rtol=0, atol=1e-6)
        assert float(score.min()) >= 0 and float(score.max()) <= 1
    alone = torch.cat([verify(noisy[k : k + 1], texts[k : k + 1]).graded for k in range(10)])
    torch.testing.assert_close(whole.graded[:10], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shown", "frac"),
    [
        ("a red cross above a blue square", 1.0),
        ("a blue square below a red cross", 1.0),
        ("a red cross below a blue square", 0.75),  # the relation
        ("a red cross left of a blue square", 0.75),
        ("a green cross above a blue square", 0.75),  # a colour
        ("a red triangle above a blue square", 0.75),  # a shape
        ("a red square above a blue cross", 0.5),  # both shapes
        ("a blue cross above a red square", 0.25),  # taken by colours, so the relation is wrong, too
        ("a red cross", 0.25),  # no square, no relation, no second object
        ("a green triangle", 0.0),
    ],
)
def test_frac_counts_the_claims_that_are_true(shown: str, frac: float) -> None:
    verdict = verify(one(shown), [PROMPT])
    assert float(verdict.frac) == frac and float(verdict.all) == (frac == 1)
    assert (float(verdict.graded) > 0.99) == (frac == 1)


def test_a_third_object_is_counted_and_a_speck_is_not() -> None:
    image = one("a red cross")
    speck, blob = image.clone(), image.clone()
    speck[:, :, 14:, 14:] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]  # 4 pixels of an object's 17.6
    blob[:, :, 13:, 13:] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    scores = verify(torch.cat([image, speck, blob]), ["a red cross"] * 3)
    assert scores.all.tolist() == [1, 1, 0] and scores.frac.tolist() == [1, 1, 0.5]
    assert bool((scores.graded.diff() < 0).all())  # dirt costs something, another object more


def test_graded_falls_with_colour_blur_and_ink_and_takes_any_place_and_size() -> None:
    clean = one(PROMPT, 5)
    for worsened in (lambda k: clean * (1 - 0.06 * k) + 0.06 * k * 0.5,  # paler
                     lambda k: clean.roll(0) + 0.02 * k):  # a brighter ground  # fmt: skip
        scores = verify(torch.cat([worsened(k) for k in range(4)]).clamp(0, 1), [PROMPT] * 4)
        assert bool((scores.graded.diff() < 0).all()), scores.graded
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    scores = verify(torch.cat([(clean + 0.02 * k * noise).clamp(0, 1) for k in range(4)]), [PROMPT] * 4)
    assert bool((scores.graded.diff() < 0).all()) and bool((scores.all == 1).all())


def test_pictures_without_objects_or_full_of_them() -> None:
    texts = [PROMPT, "a red cross", *prompts("held-out")[:6]]
    grey = verify(torch.full((8, 3, 16, 16), 0.5), texts)
    assert grey.all.tolist() == [0] * 8 and grey.frac.tolist() == [0] * 8
    for images in (torch.rand(8, 3, 16, 16), torch.zeros(8, 3, 16, 16), torch.ones(8, 3, 16, 16)):
        scores = verify(images, texts)
        assert bool((scores.all == 0).all()) and bool(scores.graded.isfinite().all())
    assert verify(torch.empty(0, 3, 16, 16), []).graded.shape == (0,)
    stripes = torch.full((1, 3, 16, 16), 0.5)
    stripes[:, 0, ::2] = 1.0  # eight objects
    assert 0 < float(verify(stripes, [PROMPT]).graded) < 0.35


def test_other_dtypes_and_gradients() -> None:
    image = one(PROMPT)
    wanted = image.double().requires_grad_()
    assert not verify(wanted, [PROMPT]).graded.requires_grad
    assert float(verify(image.half(), [PROMPT]).all) == float(verify(wanted, [PROMPT]).all) == 1


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (torch.zeros(1, 1, 16, 16), [PROMPT], r"shape \(1, 1, 16, 16\): give \(B, 3, 16, 16\)"),
        (torch.zeros(3, 16, 16), [PROMPT], "give"),
        (torch.zeros(2, 3, 16, 16), [PROMPT], "2 images and 1 prompts"),
        (torch.full((1, 3, 16, 16), torch.nan), [PROMPT], "not finite"),
        (torch.full((1, 3, 16, 16), -1.0), [PROMPT], r"out of \[0, 1\]"),
        (torch.zeros(1, 3, 16, 16), ["a lighthouse in a storm"], "none of this world"),
    ],
)
def test_hostile_input_is_refused(images: Tensor, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify(images, texts)
