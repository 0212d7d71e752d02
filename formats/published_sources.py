"""What the names in published files stand for: models, their training noise, and what they predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .published_contents import JSON


@dataclass(frozen=True)
class Betas:
    """Training noise of a latent model, linear in sqrt(beta) over 1,000 timesteps."""

    first: float
    last: float


@dataclass(frozen=True)
class Source:
    """What the name of a published data set or backend stands for: the model, its noise, what it predicts."""

    model: str
    betas: Betas | None = None
    ends: tuple[float, float] | None = None
    shift: float | None = None
    prediction: str = "epsilon"
    pixels: int | None = None  # where the file gives the size of the latent, or a wrong one


EDM = (0.002, 80.0)
LATENT = Betas(0.0015, 0.0195)
SOURCES: Mapping[str, Source] = {
    "cifar10": Source("edm-cifar10-32x32-uncond-vp", ends=EDM, prediction="edm"),
    "ffhq": Source("edm-ffhq-64x64-uncond-vp", ends=EDM, prediction="edm"),
    "afhqv2": Source("edm-afhqv2-64x64-uncond-vp", ends=EDM, prediction="edm"),
    "imagenet64": Source("edm-imagenet-64x64-cond-adm", ends=EDM, prediction="edm"),
    "lsun_bedroom_ldm": Source("ldm-lsun-bedrooms256", LATENT, pixels=256),
    "ffhq_ldm": Source("ldm-ffhq256", LATENT, pixels=256),
    "ms_coco": Source("stable-diffusion-v1-5/stable-diffusion-v1-5", Betas(0.00085, 0.012), pixels=512),
    # Both lower ends are of their diffusers schedulers; that of SD3 is shifted already, and is shifted once more.
    "sd3": Source("stabilityai/stable-diffusion-3-medium-diffusers", None, (0.003 / 1.002, 1.0), 3.0, "flow"),
    "flux": Source("black-forest-labs/FLUX.1-dev", None, (0.001, 1.0), 3.0, "flow"),
}


def source_of(metadata: Mapping[str, JSON]) -> Source | None:
    """The model that a published file was trained for, where its names are known."""
    for key in ("backend", "dataset_name"):
        name = metadata.get(key)
        if isinstance(name, str) and name in SOURCES:
            return SOURCES[name]
    return None
