"""The world `shapes`: its prompts, their texts, its geometry and its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from epd.denoisers.shapes_world import (
    COLOURS,
    GREY,
    PLACES,
    RELATIONS,
    SHAPES,
    SIDE,
    Scene,
    Split,
    Thing,
    coverage,
    layouts,
    parse,
    prompt_of,
    prompts,
    render,
    scenes,
)
from epd.experiments import shapes_world as script


def test_every_scene_and_its_text() -> None:
    assert len(scenes()) == len(set(scenes())) == 12 + 12 * 11 * 4
    assert all(parse(scene.prompt) == scene for scene in scenes())
    assert parse("a red cross above a blue square") == Scene((Thing("red", "cross"), Thing("blue", "square")), "above")
    assert parse("a red cross").canonical == parse("a red cross")
    assert parse("a red cross below a blue square").canonical == parse("a blue square above a red cross")


def test_splits_are_fixed_and_hold_converses_together() -> None:
    splits: list[Split] = ["train", "held-out", "unseen"]
    parts = {split: prompts(split) for split in splits}
    assert {split: len(part) for split, part in parts.items()} == {"train": 375, "held-out": 76, "unseen": 89}
    assert sum(parse(prompt).relation is None for prompt in parts["train"]) == 11
    assert all(scene.canonical.split == scene.split for scene in scenes())
    assert parts["held-out"][0] == "a red square below a red triangle"
    assert all("yellow triangle" in prompt for prompt in parts["unseen"])
    seen = [parse(prompt) for prompt in parts["train"]]
    for scene in map(parse, parts["held-out"]):  # what is new is the combination alone
        for thing in scene.things:
            assert any(thing in other.things and scene.relation == other.relation for other in seen)


def test_seeds_stand_for_training_prompts() -> None:
    asked = [prompt_of(seed) for seed in range(2000)]
    assert asked == [prompt_of(seed) for seed in range(2000)]
    assert set(asked) < set(prompts("train")) and len(set(asked)) > 350
    assert sum(len(prompt.split()) > 3 for prompt in asked) / 2000 == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "none of this world"),
        ("a red", "none of this world"),
        ("a red cross ", "none of this world"),
        ("a red cross\n", "none of this world"),
        ("A red cross", "none of this world"),
        ("two red crosses", "none of this world"),
        ("a red cross near a blue square", "left of, right of, above, below"),
        ("a red cross above a blue square above a red cross", "none of this world"),
        ("a purple cross", "'purple' is no colour: give one of red, green, blue, yellow"),
        ("a red circle", "'circle' is no shape: give one of square, triangle, cross"),
        ("a red cross above a blue __class__", "'__class__' is no shape"),
        ("a red cross above a red cross", "a red cross stands here twice"),
        ("a " * 100_000, "none of this world"),
    ],
)
def test_other_texts_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(prompt)
    assert len(str(caught.value)) < 300


def test_hostile_scenes_are_refused() -> None:
    red, blue = Thing("red", "cross"), Thing("blue", "square")
    for things, relation in [((), None), ((red, blue), None), ((red,), "above"), ((red, blue), "beside")]:
        with pytest.raises(ValueError, match="things, relation|is no relation"):
            Scene(things, relation)


def test_every_scene_has_room_and_shows_no_other_relation() -> None:
    place = torch.tensor(PLACES)
    for scene in scenes():
        allowed = layouts(scene)
        assert 23 <= len(allowed) <= 61 and len(allowed.unique(dim=0)) == len(allowed)
        if scene.relation is not None:
            offset = (place[allowed[:, 1]] - place[allowed[:, 0]]).T
            axis, sign = RELATIONS[scene.relation]
            assert bool((sign * offset[axis] > offset[1 - axis].abs()).all())
            sides = torch.full((len(allowed),), SIDE)
            one, other = (coverage(thing.shape, place[allowed[:, k]], sides) for k, thing in enumerate(scene.things))
            assert not bool(((one > 0) & (other > 0)).any())


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_has_the_area_and_the_centroid_that_were_asked_for(shape: str) -> None:
    centre = torch.tensor([[8.0, 8.0], [4.0, 12.0], [7.3, 9.1], [5.55, 6.49]], dtype=torch.float64)
    side = torch.tensor([SIDE, SIDE, 3.1, 5.0], dtype=torch.float64)
    covered = coverage(shape, centre, side)
    assert covered.shape == (4, 16, 16) and float(covered.min()) >= 0 and float(covered.max()) <= 1 + 1e-12
    torch.testing.assert_close(covered.sum((1, 2)), side**2, rtol=3e-4, atol=0)
    # Against points: which share of 64 x 64 of each pixel lies inside.
    points = (torch.arange(16 * 64, dtype=torch.float64) + 0.5) / 64
    x, y = points[None] - centre[:, :1], points[None] - centre[:, 1:]
    x, y, s = x[:, None], y[:, :, None], side[:, None, None]
    if shape == "square":
        inside = (x.abs() < s / 2) & (y.abs() < s / 2)
    elif shape == "cross":
        inside = (x.abs() < 0.625 * s) & (y.abs() < 0.25 * s) | (x.abs() < 0.25 * s) & (y.abs() < 0.625 * s)
    else:
        down = y + 2 / 3 * 2**0.5 * s
        inside = (down > 2 * x.abs()) & (down < 2**0.5 * s)
    exact = inside.double().unflatten(1, (16, 64)).unflatten(3, (16, 64)).mean((2, 4))
    torch.testing.assert_close(covered, exact, rtol=0, atol=0.03)


def test_pictures_are_seeded_and_of_the_palette() -> None:
    texts = [prompt_of(seed) for seed in range(50)]
    images = render(texts, torch.Generator().manual_seed(3))
    assert images.shape == (50, 3, 16, 16) and images.dtype == torch.float32
    assert torch.equal(images, render(texts, torch.Generator().manual_seed(3)))
    assert not torch.equal(images, render(texts, torch.Generator().manual_seed(4)))
    for text, image in zip(texts, images, strict=True):
        ink = (image - GREY).flatten(1)
        for thing in parse(text).things:
            assert bool((image.flatten(1).T == torch.tensor(COLOURS[thing.colour])).all(1).any())
        # Every object has as much ink: its area times its colour's distance from grey, 0.5 in each channel.
        assert float(ink.abs().sum()) == pytest.approx(1.5 * SIDE**2 * len(parse(text).things), rel=1e-3)
    assert render([]).shape == (0, 3, 16, 16)


def test_the_picture_and_the_lists_are_what_the_script_makes(tmp_path: Path) -> None:
    assert script.main(["--picture", str(tmp_path / "p.png"), "--lists", str(tmp_path)]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and script.PICTURE.stat().st_size <= 60_000
    for shipped in script.LISTS.glob("*.txt"):
        assert shipped.read_text() == (tmp_path / shipped.name).read_text()
    assert len(list(script.LISTS.glob("*.txt"))) == 3
