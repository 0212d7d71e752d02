"""Policies away from their start, for the tests of rl."""

from __future__ import annotations

import copy

import torch

from epd.rl.parametrisation import PARAMETRISATIONS
from epd.rl.policy import Policy

from . import tables

# Every structure with our parametrisations; those on the simplex with the published one.
TABLES = {**tables.FAMILIES, "told levels": tables.told_table(), "two steps": tables.PLAIN}
SIMPLEX = ("epd", "epd, AFS", "plugin", "plugin, AFS", "two steps")
CASES = [(name, kind) for kind in ("ours", "whitened") for name in TABLES] + [(name, "published") for name in SIMPLEX]

assert set(PARAMETRISATIONS) == {kind for _, kind in CASES}


def moved(policy: Policy, seed: int = 0, by: float = 0.1) -> Policy:
    """A copy whose parameters are all changed a little."""
    out, generator = copy.deepcopy(policy), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in out.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return out


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)
