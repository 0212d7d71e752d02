"""Does a picture of `shapes` show what its prompt asks for? Exactly checkable claims, as scores of three kinds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from .shapes_world import COLOURS, GREY, RELATIONS, SHAPES, SIDE, SIZE, coverage, parse

FOREGROUND = 0.25  # RGB distance from grey, over which a pixel is ink
SMALLEST = 0.3  # of an object's area; what is smaller does not count
TOLERANCE = 0.30  # RGB distance from a colour
OVERLAP = 0.70  # soft intersection over union with the shape
DIRTY = 0.5  # mean RGB distance of the ground from grey at which nothing is left of cleanness
MARGIN = 2.0  # pixels farther along a relation's axis than across it, from which it holds beyond doubt
PLANE = np.array([[[0] * 3] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0] * 3] * 3])  # pixels touch along edges


@dataclass(frozen=True)
class Verdict:
    """Scores in [0, 1] of pictures against their prompts, float32.

    Claims are each thing that the prompt names, their number, and their relation where it names one.

    Args:
        all: (B,) 1 where every claim is true, else 0.
        frac: (B,) share of the claims that are true.
        graded: (B,) mean of how true each is: overlap x closeness of colour for a thing, number x cleanness, and the
            relation rising over 4 pixels. A rendering has 0.993 or more.
    """

    all: Tensor
    frac: Tensor
    graded: Tensor


@dataclass(frozen=True)
class _Objects:
    """The connected components of B pictures, C in all, in order of their pictures.

    Args:
        owner: (C,) which picture each is in.
        centre: (C, 2) centroid (x, y) in pixels.
        distance: (C, colours) RGB distance of its inner mean from each colour.
        overlap: (C, shapes) soft intersection over union with each shape of its area and centroid.
        cleanness: (B,) of the ground around them.
    """

    owner: Tensor
    centre: Tensor
    distance: Tensor
    overlap: Tensor
    cleanness: Tensor


def verify(images: Tensor, prompts: Sequence[str]) -> Verdict:
    """Checks every picture against its prompt; no gradient goes through it.

    Ink is what is farther than 0.25 from grey. A thing is there where a 4-connected component has its colour (nearest
    to the mean of the inner pixels, and at most 0.30 away) and its shape (best soft intersection over union with
    templates of the same area and centroid, and at least 0.70). Components under 0.3 of an object's area do not count.
    Things are assigned to components so that their graded scores are largest.

    Args:
        images: (B, 3, 16 k, 16 k) in [0, 1], on any device; the scores are on it, too. Larger ones are averaged down.
        prompts: B of this world.

    Raises:
        ValueError: for another shape, another number of prompts, values that are not finite or out of [0, 1], or a
            prompt that is none of this world.
    """
    side = images.shape[-1] if images.ndim == 4 else 0
    if images.ndim != 4 or images.shape[1:] != (3, side, side) or side < SIZE or side % SIZE:
        raise ValueError(f"images of shape {tuple(images.shape)}: give (B, 3, {SIZE}, {SIZE}), or a multiple of {SIZE}")
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: give one prompt for each image")
    asked = [_asked(prompt) for prompt in prompts]
    if not asked:
        return Verdict(*images.new_zeros(3, 0, dtype=torch.float32))
    pixels = images.detach().cpu().float()
    if not bool((pixels.isfinite() & (pixels > -1e-3) & (pixels < 1 + 1e-3)).all()):
        raise ValueError("images hold values that are not finite or out of [0, 1]: decode them and clamp to [0, 1]")
    scores = _scores(_objects(functional.avg_pool2d(pixels, side // SIZE)), torch.tensor(asked))
    return Verdict(*(score.to(images.device) for score in scores))


@functools.cache
def _asked(prompt: str) -> tuple[int, ...]:
    """Of each thing colour and shape (-1 where there is no second one), axis and sign of the relation (0: none)."""
    scene = parse(prompt)
    looks = [(list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)) for thing in scene.things]
    second = looks[1] if scene.relation else (-1, -1)
    return (*looks[0], *second, *(RELATIONS[scene.relation] if scene.relation else (0, 0)))


def _objects(images: Tensor) -> _Objects:
    ink = images - GREY
    away = ink.square().sum(1).sqrt()
    owner, body, ring = _masks(away > FOREGROUND)
    rim = _grown(~body, 3, 1) | _grown(~body, 1, 3)
    inner = body & ~rim
    inner = torch.where(inner.flatten(1).any(1)[:, None, None], inner, body).float()
    mine = ink[owner]
    colour = (mine * inner[:, None]).sum((2, 3)) / inner.sum((1, 2))[:, None]  # less grey
    along = (mine * colour[..., None, None]).sum(1) / colour.square().sum(1).clamp_min(1e-6)[:, None, None]
    share = along.clamp(0, 1) * ring  # how much of each pixel is this object
    mass = share.sum((1, 2)).clamp_min(1e-6)
    place = torch.arange(SIZE) + 0.5
    centre = torch.stack([share.sum(1) @ place, share.sum(2) @ place], 1) / mass[:, None]
    shapes = torch.stack([coverage(shape, centre, mass.sqrt()) for shape in SHAPES], 1)
    common = torch.minimum(shapes, share[:, None]).sum((2, 3))
    overlap = common / (shapes.sum((2, 3)) + mass[:, None] - common)
    palette = torch.tensor(list(COLOURS.values())) - GREY
    distance = (colour[:, None] - palette).square().sum(2).sqrt()
    ground = torch.ones_like(away).index_put_((owner,), -ring.float(), accumulate=True).clamp_min(0)
    dirt = (away * ground).sum((1, 2)) / ground.sum((1, 2)).clamp_min(1)
    return _Objects(owner, centre, distance, overlap, (1 - dirt / DIRTY).clamp(0, 1))


def _masks(foreground: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the components that count: their pictures (C,), their pixels, and those with the ground that they touch."""
    labels, count = cast("tuple[np.ndarray, int]", ndimage.label(foreground.numpy(), PLANE))
    label = torch.from_numpy(labels).long()
    pictures = torch.arange(len(label))[:, None, None].expand_as(label)
    owner = torch.zeros(count + 1, dtype=torch.long).index_put_((label.flatten(),), pictures.flatten())
    large = label.flatten().bincount(minlength=count + 1) >= SMALLEST * SIDE**2
    kept = large[1:].nonzero().flatten() + 1  # 0 is the ground
    owner = owner[kept]
    body = label[owner] == kept[:, None, None]
    return owner, body, (_grown(body, 3, 3) & (label[owner] == 0)) | body


def _grown(mask: Tensor, high: int, wide: int) -> Tensor:
    """Every pixel with a set one in the window around it; (C, 16, 16)."""
    return functional.max_pool2d(mask[:, None].float(), (high, wide), 1, (high // 2, wide // 2))[:, 0] > 0


def _scores(objects: _Objects, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`all`, `frac` and `graded` of every picture; `asked` is (B, 6), see `_asked`."""
    two = asked[:, 2] >= 0
    found = objects.owner.bincount(minlength=len(asked))
    excess = (found - 1 - two.long()).abs()
    one, other = _assigned(objects, asked[:, :4], found)
    axis, sign = asked[:, 4:5], asked[:, 5]
    offset = other[:, 4:] - one[:, 4:]
    margin = sign * offset.gather(1, axis)[:, 0] - offset.gather(1, 1 - axis)[:, 0].abs()
    related = two & (found >= 2)
    hard = torch.stack([one[:, 2], other[:, 3], excess == 0, related & (margin > 0)], 1)
    holds = (0.5 + margin / (2 * MARGIN)).clamp(0, 1) * related
    soft = torch.stack([one[:, 0], other[:, 1], objects.cleanness / (1 + excess), holds], 1)
    claims = 2.0 + 2.0 * two
    return (hard.sum(1) == claims).float(), hard.sum(1) / claims, soft.sum(1) / claims


def _assigned(objects: _Objects, looks: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The component that stands for the first thing, and for the second: (B, 6) each, zeros where there is none.

    Columns: graded score as the first thing and as the second, whether it is the first and the second, centre x, y.
    """
    owner = objects.owner
    colour, shape = looks[owner].clamp_min(0).unflatten(1, (2, 2)).unbind(2)  # (C, 2), of each thing
    named = looks[owner][:, ::2] >= 0
    distance, overlap = objects.distance.gather(1, colour), objects.overlap.gather(1, shape)
    graded = overlap * (1 - distance).clamp_min(0) * named
    nearest, best = objects.distance.argmin(1, keepdim=True), objects.overlap.argmax(1, keepdim=True)
    true = (nearest == colour) & (best == shape) & (distance <= TOLERANCE) & (overlap >= OVERLAP) & named
    slots = max(2, int(found.max()))
    slot = torch.arange(len(owner)) - (found.cumsum(0) - found)[owner]
    table = torch.zeros(len(looks), slots, 6)
    table[owner, slot] = torch.cat([graded, true, objects.centre], 1)
    pairs = table[:, :, None, 0] + table[:, None, :, 1]  # two things are two components
    best_pair = pairs.masked_fill(torch.eye(slots, dtype=torch.bool), -1.0).flatten(1).argmax(1)
    row = torch.arange(len(looks))
    return table[row, best_pair // slots], table[row, best_pair % slots]
