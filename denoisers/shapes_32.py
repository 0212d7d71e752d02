"""`shapes-32`: the larger embedded network, class-conditional, 32 x 32 pixels, 256 tokens and 8 blocks.

Its classes are prompts of the world `shapes`, drawn twice as large, and that world's verifier judges its pictures. A
network call is dear enough, and a picture has regions enough, for what accelerators gain to be seen.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .class_pipeline import class_pipeline
from .diffusers_networks import dit
from .digits import ASSETS
from .identity_vae import identity_vae
from .networks import NetworkDenoiser
from .shapes_world import COLOURS, GREY, PLACES, SHAPES, SIDE, SIZE, Scene, coverage, layouts, parse, scenes
from .timesteps import linear_beta

if TYPE_CHECKING:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline

MODEL_FOLDER = ASSETS / "shapes-32"
ENLARGED = 2  # times the pixels of `shapes_world`, both ways
SCALE = 2.0  # of states over pixels in [-1, 1]: most of a picture is grey, which is 0
STEP = 47  # between the scenes of two things that are classes: every relation, and things of every kind


@functools.cache
def classes() -> tuple[str, ...]:
    """The prompts of the 24 classes: 12 of one thing, then 12 of two."""
    kinds = len(COLOURS) * len(SHAPES)
    return tuple(scene.prompt for scene in (*scenes()[:kinds], *scenes()[kinds::STEP]))


def classes_of(seeds: Sequence[int]) -> Tensor:
    """The classes that seeds stand for, seed mod 24."""
    return torch.tensor([seed % len(classes()) for seed in seeds])


def paint(labels: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """(B, 3, 32, 32) float32 in [0, 1]: a picture of each class.

    Its layout is drawn uniformly, and then moved as a whole by up to one pixel of 16, within the outermost places.
    """
    drawn = torch.rand(len(labels), 3, generator=generator, dtype=torch.float64)
    return torch.stack([_painted(parse(classes()[n]), u) for n, u in zip(labels, drawn, strict=True)])


def _painted(scene: Scene, drawn: Tensor) -> Tensor:
    allowed, places = layouts(scene), torch.tensor(PLACES, dtype=torch.float64)
    at = places[allowed[int(drawn[0] * len(allowed))]]  # (things, 2)
    shift = (2 * drawn[1:] - 1).clamp(places.min() - at.amin(0), places.max() - at.amax(0))
    image, side = torch.full((3, SIZE * ENLARGED, SIZE * ENLARGED), GREY), torch.tensor([SIDE * ENLARGED])
    for thing, centre in zip(scene.things, (at + shift) * ENLARGED, strict=True):
        ink = torch.tensor(COLOURS[thing.colour]) - GREY
        image += coverage(thing.shape, centre[None], side.double(), SIZE * ENLARGED).float() * ink[:, None, None]
    return image


def shapes_32_transformer() -> DiTTransformer2DModel:
    """The trained network itself: v prediction, class 24 is the unconditional one; float32, frozen."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    net = DiTTransformer2DModel.from_pretrained(MODEL_FOLDER, local_files_only=True, torch_dtype=torch.float32)
    return net.eval().requires_grad_(False)


def shapes_32(guidance: float = 1.0) -> NetworkDenoiser:
    """The network as a model of states (3, 32, 32), sigma 0.01..157; a seed stands for the class seed mod 24.

    Trained by `experiments/train_shapes_32.py`.

    Args:
        guidance: the scale that `for_seeds` binds.
    """
    model = dit(shapes_32_transformer(), linear_beta(), "v_prediction", "shapes-32")
    return replace(model, guidance=float(guidance), seed_rows=classes_of, picture=_picture)


def shapes_32_pipeline() -> DiTPipeline:
    """The network in diffusers' stock pipeline: `pipe(class_labels=[3, 17], guidance_scale=2.0).images`.

    The autoencoder is the identity, up to its scale.
    """
    vae = identity_vae(3, SIZE * ENLARGED)
    vae.register_to_config(scaling_factor=SCALE)
    return class_pipeline(shapes_32_transformer(), MODEL_FOLDER, vae, classes())


def _picture(x: Tensor) -> Tensor:
    return (x / SCALE / 2 + 0.5).clamp(0, 1)
