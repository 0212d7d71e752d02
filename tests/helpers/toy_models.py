"""Small exact models for tests of training: a nonlinear mixture in four dimensions, solved in milliseconds."""

from __future__ import annotations

import torch

from epd import GaussianMixture
from epd.denoisers.protocol import Path
from epd.distill.config import DistillConfig


def toy_mixture(path: Path = "ve") -> GaussianMixture:
    """Five modes in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(5, 1, 2, 2, generator=generator, dtype=torch.float64)
    low = 0.02 if path == "ve" else 0.01
    return GaussianMixture(means, 0.5, path=path, sigma_min=low, sigma_max=20.0 if path == "ve" else 1.0, name="toy")


def toy_config(**changes: object) -> DistillConfig:
    """Seconds, not minutes."""
    small: dict[str, object] = {
        "family": "two-call", "calls": 3, "pool": 256, "batch": 128, "accumulate": 2, "validation": 128,
        "iterations": 6, "screening": 2, "dtype": "float64", "optimizer": "gauss-newton", "teacher_tolerance": 1e-4,
    }  # fmt: skip
    return DistillConfig.model_validate({**small, **changes})
