"""The embedded models on real data: scikit-learn's handwritten digits, 8 x 8 pixels.

Data: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49), CC BY 4.0, as scikit-learn ships it; written by `experiments/export_digits.py`.
"""

from __future__ import annotations

from pathlib import Path as FilePath

import torch
from safetensors.torch import load_file
from torch import Tensor

from .mixture import GaussianMixture
from .protocol import Path

ASSETS = FilePath(__file__).resolve().parent / "assets"
DATA_FILE = ASSETS / "digits.safetensors"
MODEL_FOLDER = ASSETS / "digits"
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
