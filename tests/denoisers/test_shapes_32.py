"""The larger world: its classes, pictures twice as large that its verifier believes, and the network in a pipeline."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from epd.denoisers import shapes_32 as world
from epd.denoisers.noise import unit_noise
from epd.denoisers.shapes_verifier import verify
from epd.denoisers.shapes_world import RELATIONS, SHAPES, coverage, parse

LABELS = [label % 24 for label in range(240)]


def test_classes_are_every_thing_alone_and_as_many_pairs_of_every_relation() -> None:
    scenes = [parse(prompt) for prompt in world.classes()]
    assert len({*world.classes()}) == 24 and [len(scene.things) for scene in scenes] == [1] * 12 + [2] * 12
    assert len({scene.things[0] for scene in scenes[:12]}) == 12
    assert {scene.relation for scene in scenes[12:]} == {*RELATIONS}
    assert world.classes_of([0, 23, 24, 100_001]).tolist() == [0, 23, 0, 17]


def test_pictures_show_their_classes_and_no_other() -> None:
    pictures = world.paint(LABELS, torch.Generator().manual_seed(0))
    assert pictures.shape == (240, 3, 32, 32) and 0 <= float(pictures.min()) and float(pictures.max()) <= 1
    assert bool((verify(pictures, [world.classes()[label] for label in LABELS]).all == 1).all())
    others = verify(pictures, [world.classes()[(label + 5) % 24] for label in LABELS])
    assert float(others.all.sum()) == 0
    assert len({picture.numpy().tobytes() for picture in pictures}) > 220  # moved, but in the corners
    again = world.paint(LABELS, torch.Generator().manual_seed(0))
    assert torch.equal(pictures, again)


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_as_large_is_the_same_shape(shape: str) -> None:
    centre, side = torch.tensor([[6.3, 9.1], [8.0, 8.0]], dtype=torch.float64), torch.tensor([4.2, 3.1]).double()
    small, large = coverage(shape, centre, side), coverage(shape, 2 * centre, 2 * side, 32)
    assert large.shape == (2, 32, 32)
    halved = torch.nn.functional.avg_pool2d(large, 2)
    # Squares and crosses are exact; a triangle is summed over rows half as high.
    torch.testing.assert_close(halved, small, rtol=0, atol=0.01 if shape == "triangle" else 1e-12)


def test_pictures_of_other_sizes_are_refused() -> None:
    for size in (8, 24, 40):
        with pytest.raises(ValueError, match="multiple of 16"):
            verify(torch.zeros(1, 3, size, size), ["a red square"])
    with pytest.raises(ValueError, match="multiple of 16"):
        verify(torch.zeros(1, 3, 32, 16), ["a red square"])


def test_the_pipeline_asks_the_same_network() -> None:
    model, pipe = world.shapes_32(guidance=2.0), world.shapes_32_pipeline()
    config = pipe.transformer.config
    assert (config.sample_size // config.patch_size) ** 2 == 256 and config.num_layers == 8
    x, classes = unit_noise([3, 4], model.shape), [17, 5]
    grown = pipe.transformer(
        torch.cat([x, x]), timestep=torch.tensor([500] * 4), class_labels=torch.tensor([*classes, 1000, 1000])
    ).sample
    plain = world.shapes_32_transformer()(
        torch.cat([x, x]), timestep=torch.tensor([500] * 4), class_labels=torch.tensor([*classes, 24, 24])
    ).sample
    assert torch.equal(grown, plain) and float((plain[:2] - plain[2:]).abs().max()) > 1e-3  # classes matter
    decoded = pipe.vae.decode(x / world.SCALE).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), model.decode(x), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_network_paints_what_it_is_asked_for() -> None:
    pipe = world.shapes_32_pipeline()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = cast(Any, pipe)(
        class_labels=[*range(24)], num_inference_steps=15, guidance_scale=2.0, generator=generator, output_type="np"
    )
    images = out.images
    found = verify(torch.tensor(images).permute(0, 3, 1, 2), world.classes())
    assert float(found.frac.mean()) > 0.8 and float(found.graded.mean()) > 0.8
