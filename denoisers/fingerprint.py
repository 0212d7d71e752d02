"""What a model's results depend on, as digests: no cache and no run is taken for that of another network."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .protocol import Denoiser, Model
from .rows import RowLimited

NUMBERS = 64  # of each tensor of weights, at least: a network that was trained on differs in nearly all of them


@dataclass(frozen=True)
class Dependencies:
    """What a denoiser's results depend on beside state and noise level.

    Args:
        networks: by their weights; all that are evaluated, text encoders included.
        rows: tensors by name, such as bound conditions.
        settings: what else, ready for JSON.
    """

    networks: tuple[nn.Module, ...] = ()
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)


@runtime_checkable
class Transparent(Protocol):
    """A model, or the denoiser that its `for_seeds` returns, that can say what its results depend on."""

    def depends_on(self) -> Dependencies | None:
        """Everything, or None where it cannot be told."""
        ...


def weights_digest(networks: Iterable[nn.Module]) -> str:
    """Digest of a sample of every parameter and buffer, with names, shapes and dtypes; empty without networks.

    Every weight is read at NUMBERS places or a few more, so that a large network takes milliseconds. Weights that are
    not in memory (on the meta device) count by their names alone.
    """
    digest, samples = hashlib.sha256(), dict[torch.device, list[Tensor]]()
    count = 0
    for network in networks:
        count += 1
        digest.update(type(network).__qualname__.encode())
        for name, value in itertools.chain(network.named_parameters(), network.named_buffers()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            if value.numel() and value.device.type != "meta":
                samples.setdefault(value.device, []).append(_sample(value.detach()))
    for parts in samples.values():  # one transfer a device
        digest.update(torch.cat(parts).cpu().numpy().tobytes())
    return digest.hexdigest() if count else ""


def _sample(value: Tensor) -> Tensor:
    flat = (torch.view_as_real(value) if value.is_complex() else value).reshape(-1)
    return flat[:: max(1, len(flat) // NUMBERS)].contiguous().view(torch.uint8)


def model_identity(model: Model) -> dict[str, object]:
    """What is known of a model whose numbers a run or a kept result depends on, ready for JSON, the telling ones first.
    """
    return {
        "model": model.name,
        "path": model.path,
        "shape": list(model.shape),
        "guidance": model.guidance,
        "weights": model_digest(model),
    }


def model_digest(model: Model) -> str:
    """Digest of a model's networks; empty where it has none that it names."""
    whole = model.model if isinstance(model, RowLimited) else model
    dependencies = whole.depends_on() if isinstance(whole, Transparent) else None
    return "" if dependencies is None else weights_digest(dependencies.networks)


def conditions_digest(model: Model, seeds: Sequence[int]) -> str:
    """Digest of what these seeds are bound to, weights aside; empty where the model cannot say all of it."""
    whole = model.model if isinstance(model, RowLimited) else model
    bound: Denoiser = whole.for_seeds(seeds)
    dependencies = bound.depends_on() if isinstance(bound, Transparent) else None
    if dependencies is None:
        return ""
    digest = hashlib.sha256(json.dumps(dict(dependencies.settings), sort_keys=True).encode())
    for name, value in sorted(dependencies.rows.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
