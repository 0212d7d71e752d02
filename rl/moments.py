"""A module's parameters and Adam's moments as vectors, which is what a trainer's state holds of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters

NAMES = ("exp_avg", "exp_avg_sq")  # how torch calls the moments


def load_vector(module: nn.Module, vector: Tensor) -> None:
    """Gives the module these parameters; a copy, as parameters would be views, which Adam then changes in place."""
    vector_to_parameters(vector.clone(), module.parameters())


def restore(optimizer: torch.optim.Adam, module: nn.Module, moments: Tensor, steps: int) -> None:
    """Puts moments (2, V) and the number of steps into Adam."""
    first, second = moments
    at = 0
    for parameter in module.parameters():
        size = parameter.numel()
        parts = (m[at : at + size].reshape(parameter.shape).clone() for m in (first, second))
        values: dict[str, Tensor] = dict(zip(NAMES, parts, strict=True))
        optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **values}
        at += size


def stored(optimizer: torch.optim.Adam, module: nn.Module) -> tuple[Tensor, Tensor, int]:
    """Parameters (V,), Adam's moments (2, V) of them, and its steps."""
    parameters = list(module.parameters())
    moments = [torch.cat([optimizer.state[p][name].flatten() for p in parameters]) for name in NAMES]
    steps = int(optimizer.state[parameters[0]]["step"])
    return parameters_to_vector(parameters).detach().clone(), torch.stack(moments), steps
