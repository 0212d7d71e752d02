"""The embedded models on real data: scikit-learn's handwritten digits, 8 x 8 pixels.

Data: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49), CC BY 4.0, as scikit-learn ships it; written by `experiments/export_digits.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from .class_pipeline import class_pipeline
from .diffusers_networks import dit
from .digits_classifier import DigitsClassifier
from .identity_vae import identity_vae
from .mixture import GaussianMixture
from .networks import NetworkDenoiser
from .protocol import Path
from .timesteps import linear_beta

if TYPE_CHECKING:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline

EMBEDDED = ("digits", "digits-exact", "digits-exact-flow")
ASSETS = FilePath(__file__).resolve().parent / "assets"
DATA_FILE = ASSETS / "digits.safetensors"
MODEL_FOLDER = ASSETS / "digits"
NUM_CLASSES = 10
CLASSIFIER_FILE = ASSETS / "digits_classifier.safetensors"


def digits_data() -> tuple[Tensor, Tensor]:
    """The images (1797, 1, 8, 8) as float32 in [-1, 1] (grey value 0..16 as x/8 - 1) and their labels (1797,) int64."""
    parts = load_file(str(DATA_FILE))
    return parts["images"].float()[:, None] / 8 - 1, parts["labels"].long()


def held_out() -> Tensor:
    """(1797,) bool: the 200 images that no training here ever sees; the same ones always."""
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(1797))
    mask = torch.zeros(1797, dtype=torch.bool)
    mask[order[:200]] = True
    return mask


def digits_exact(path: Path = "ve") -> GaussianMixture:
    """The benchmark model: the exact posterior mean of the kernel-smoothed data, (1/N) sum_i N(x_i, 0.1^2 I).

    Its classes can be bound (`.bind(labels)`); sigma runs from 0.002 to 80 (`ve`) or 1 (`flow`).
    """
    images, labels = digits_data()
    name = "digits-exact" if path == "ve" else "digits-exact-flow"
    return GaussianMixture(images.double(), 0.1, path=path, labels=labels, name=name)


def classes_of(seeds: Sequence[int]) -> Tensor:
    """The class that a seed stands for: its last decimal digit."""
    return torch.tensor([seed % NUM_CLASSES for seed in seeds])


def digits_transformer() -> DiTTransformer2DModel:
    """The trained network itself: v prediction, classes 0-9, class 10 is the unconditional one; float32, frozen."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    net = DiTTransformer2DModel.from_pretrained(MODEL_FOLDER, local_files_only=True, torch_dtype=torch.float32)
    return net.eval().requires_grad_(False)


def digits(guidance: float = 1.0) -> NetworkDenoiser:
    """The embedded network (`.bind(labels, guidance)`; unbound it is unconditional), sigma 0.01..157.

    A seed stands for the class of its last decimal digit. Trained by `experiments/train_digits.py`.

    Args:
        guidance: the scale that `for_seeds` binds.
    """
    model = dit(digits_transformer(), linear_beta(), "v_prediction", "digits")
    return replace(model, guidance=float(guidance), seed_rows=classes_of)


def digits_classifier() -> DigitsClassifier:
    """Logits (B, 10) and `features` (B, 64) of images in [-1, 1].

    Trained by `experiments/train_digits_classifier.py`, without the held-out images.
    """
    net = DigitsClassifier()
    net.load_state_dict({name: value.float() for name, value in load_file(str(CLASSIFIER_FILE)).items()})
    return net.eval().requires_grad_(False)


def digits_pipeline() -> DiTPipeline:
    """The embedded network in diffusers' stock pipeline: `pipe(class_labels=[3], guidance_scale=2.0).images`.

    The autoencoder is the identity.
    """
    names = "zero one two three four five six seven eight nine".split()
    return class_pipeline(digits_transformer(), MODEL_FOLDER, identity_vae(), names)
