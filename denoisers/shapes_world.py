"""The embedded world `shapes`: prompts such as "a red cross above a blue square", and every picture that they allow.

A picture is 16 x 16 RGB in [0, 1] on grey: one or two objects of four colours and three shapes, all of one area, that
stand at 5 x 5 places. Which places a prompt allows is listed, not tried out: no combination can be without room.
`shapes_verifier.verify` says whether a picture shows what its prompt asks for.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SIZE = 16  # pixels, both ways
GREY = 0.5
COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "yellow": (1.0, 1.0, 0.0)}
SHAPES = ("square", "triangle", "cross")
# Axis (0: x, to the right; 1: y, downwards) and direction in which the second object lies.
RELATIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
CONVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIDE = 4.2  # sqrt(area) of every object, in pixels
GAP = 1.4  # pixels between two objects, so that no pixel holds ink of both and their masks never touch
PLACES = tuple(itertools.product((4.0, 6.0, 8.0, 10.0, 12.0), repeat=2))  # (x, y) of a centroid, in pixels
SHARE_OF_TWO = 0.6  # of the prompts that seeds stand for
SUBROWS = 8  # of a pixel, where a triangle's coverage is summed

# To the left of, above, to the right of and below its centroid, in units of SIDE; see `coverage`.
EXTENTS = {
    "square": (0.5, 0.5, 0.5, 0.5),
    "triangle": (0.5**0.5, 8**0.5 / 3, 0.5**0.5, 2**0.5 / 3),
    "cross": (0.625,) * 4,
}
PATTERN = re.compile(rf"a (\w+) (\w+)(?: ({'|'.join(RELATIONS)}) a (\w+) (\w+))?")
Split = Literal["train", "held-out", "unseen"]


class Thing(NamedTuple):
    """An object by its looks."""

    colour: str
    shape: str


UNSEEN = Thing("yellow", "triangle")  # in no training prompt


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for: one thing, or two different ones with the first's relation to the second.

    Raises:
        ValueError: for an unknown colour, shape or relation, the same thing twice, or a relation without two things.
    """

    things: tuple[Thing, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        for thing in self.things:
            if thing.colour not in COLOURS:
                raise ValueError(f"{thing.colour!r} is no colour: give one of {', '.join(COLOURS)}")
            if thing.shape not in SHAPES:
                raise ValueError(f"{thing.shape!r} is no shape: give one of {', '.join(SHAPES)}")
        if len(self.things) != (1 if self.relation is None else 2):
            raise ValueError(f"{len(self.things)} things, relation {self.relation!r}: give one without, or two with")
        if self.relation is not None and self.relation not in RELATIONS:
            raise ValueError(f"{self.relation!r} is no relation: give one of {', '.join(RELATIONS)}")
        if len(set(self.things)) < len(self.things):
            raise ValueError(f"a {' '.join(self.things[0])} stands here twice: give two different things")

    @property
    def prompt(self) -> str:
        """Its text; `parse` reads it."""
        return f" {self.relation} ".join(f"a {thing.colour} {thing.shape}" for thing in self.things)

    @property
    def canonical(self) -> Scene:
        """The one of two texts for the same pictures, "A left of B" and "B right of A", that is kept: the former."""
        if self.relation in ("right of", "below"):
            return Scene(self.things[::-1], CONVERSE[self.relation])
        return self

    @property
    def split(self) -> Split:
        """`unseen` with a yellow triangle; `held-out`: a fifth of all two-object scenes, by hash; else `train`."""
        if UNSEEN in self.things:
            return "unseen"
        digest = hashlib.sha512(self.canonical.prompt.encode()).digest()
        return "held-out" if self.relation is not None and digest[0] < 256 // 5 else "train"


def parse(prompt: str) -> Scene:
    """The scene of a prompt, "a red cross" or "a red cross above a blue square".

    Raises:
        ValueError: for any other text, naming the word at fault where there is one.
    """
    match = PATTERN.fullmatch(prompt)
    if match is None:
        raise ValueError(
            f"prompt {prompt[:80]!r} is none of this world: write 'a COLOUR SHAPE', or 'a COLOUR SHAPE RELATION a "
            f"COLOUR SHAPE' with one of {', '.join(RELATIONS)}"
        )
    colour, shape, relation, *second = match.groups()
    try:
        return Scene((Thing(colour, shape), *([Thing(*second)] if relation else [])), relation)
    except ValueError as error:
        raise ValueError(f"prompt {prompt[:80]!r}: {error}") from error


@functools.cache
def scenes() -> tuple[Scene, ...]:
    """All 540 scenes, those of one object first, always in the same order."""
    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = itertools.permutations(things, 2)
    two = (Scene(pair, relation) for pair in pairs for relation in RELATIONS)
    return (*(Scene((thing,)) for thing in things), *two)


@functools.cache
def prompts(split: Split) -> tuple[str, ...]:
    """All prompts of a part: `train` (11 of one object, then 364), `held-out` (76 of two) or `unseen` (1 and 88).

    `held-out` combines things and relations that training prompts have, but not together; nobody's training has the
    yellow triangle of `unseen`.
    """
    return tuple(scene.prompt for scene in scenes() if scene.split == split)


def prompt_of(seed: int) -> str:
    """The training prompt that a seed stands for: six of ten have two objects."""
    drawn = random.Random(f"shapes {seed}")  # text is hashed; the first numbers of small integers' streams are alike
    two = drawn.random() < SHARE_OF_TWO
    choice = [prompt for prompt in prompts("train") if (len(prompt.split()) > 3) == two]
    return choice[int(drawn.random() * len(choice))]


@functools.cache
def layouts(scene: Scene) -> Tensor:
    """(L, things) int64: every choice of places, as indices into PLACES, that shows the scene; L is 23 to 61.

    Two objects are GAP apart along their relation's axis, and farther apart along it than across it, so that no other
    relation holds.
    """
    if scene.relation is None:
        return torch.arange(len(PLACES))[:, None]
    axis, sign = RELATIONS[scene.relation]
    one, other = (EXTENTS[thing.shape] for thing in scene.things)
    near = one[axis + 2] + other[axis] if sign > 0 else one[axis] + other[axis + 2]
    found = []
    for (i, first), (j, second) in itertools.product(enumerate(PLACES), repeat=2):
        along, across = sign * (second[axis] - first[axis]), abs(second[1 - axis] - first[1 - axis])
        if along - near * SIDE >= GAP and along > across:
            found.append((i, j))
    return torch.tensor(found)


def draw(scene: Scene, places: Tensor) -> Tensor:
    """(L, 3, 16, 16) float32 in [0, 1]: the scene with its things at these places, (L, things) int64."""
    image = torch.full((len(places), 3, SIZE, SIZE), GREY)
    for thing, at in zip(scene.things, places.unbind(1), strict=True):
        ink = torch.tensor(COLOURS[thing.colour]) - GREY
        image += _stamps(thing.shape)[at][:, None] * ink[:, None, None]
    return image


def render(prompts: Sequence[str], generator: torch.Generator | None = None) -> Tensor:
    """(B, 3, 16, 16) float32 in [0, 1]: one picture for each prompt, its layout drawn uniformly.

    Raises:
        ValueError: for a prompt that is none of this world.
    """
    images = []
    for prompt, number in zip(prompts, torch.rand(len(prompts), generator=generator).tolist(), strict=True):
        scene = parse(prompt)
        allowed = layouts(scene)
        images.append(draw(scene, allowed[int(number * len(allowed))][None]))
    return torch.cat(images) if images else torch.empty(0, 3, SIZE, SIZE)


@functools.cache
def _stamps(shape: str) -> Tensor:
    centre = torch.tensor(PLACES, dtype=torch.float64)
    return coverage(shape, centre, torch.full((len(PLACES),), SIDE, dtype=torch.float64)).float()


def coverage(shape: str, centre: Tensor, side: Tensor, size: int = SIZE) -> Tensor:
    """(C, size, size) in [0, 1]: which share of each pixel a shape covers.

    A cross has two bars of sides 2 : 5; a triangle is as high as it is wide and points up. Squares and crosses are
    exact; a triangle is summed over rows that are an eighth of a pixel high, each as wide as in its middle.

    Args:
        shape: one of SHAPES.
        centre: (C, 2) centroids (x, y) in pixels from the upper left corner of the picture.
        side: (C,) square root of the area, in pixels.
        size: pixels of the picture, both ways.
    """
    x, y, side = centre[:, :1], centre[:, 1:], side[:, None]
    if shape == "triangle":
        width = side * 2**0.5
        apex = y - width * 2 / 3
        edge = torch.arange(size * SUBROWS, dtype=side.dtype, device=side.device) / SUBROWS
        inside = torch.minimum(edge + 1 / SUBROWS, apex + width) - torch.maximum(edge, apex)
        half = (edge + 0.5 / SUBROWS - apex) / 2
        rows = _overlap(x[..., None], half[..., None], size) * inside.clamp_min(0)[..., None]
        return rows.unflatten(1, (size, SUBROWS)).sum(2)
    if shape == "square":
        return _overlap(y, side / 2, size)[:, :, None] * _overlap(x, side / 2, size)[:, None]
    (tall, wide), (low, narrow) = (
        (_overlap(y, half, size), _overlap(x, half, size)) for half in (side * 0.625, side * 0.25)
    )
    bars = tall[:, :, None] * narrow[:, None] + low[:, :, None] * wide[:, None]
    return bars - low[:, :, None] * narrow[:, None]


def _overlap(centre: Tensor, half: Tensor, size: int) -> Tensor:
    """(..., size): how much of each pixel lies within [centre - half, centre + half], given (..., 1)."""
    edge = torch.arange(size, dtype=half.dtype, device=half.device)
    return (torch.minimum(edge + 1, centre + half) - torch.maximum(edge, centre - half)).clamp_min(0)
