"""A policy as a file: weights as safetensors, its base table and parametrisation as JSON beside them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..formats.files import require_regular, write_atomically
from ..formats.json_text import parse_json
from ..solvers.table import Table
from .parametrisation import Parametrisation
from .policy import Policy

LISTS = ("dirichlet", "gaussian", "log_normal")


class PolicyError(ValueError):
    """A file that is no policy: the message names it and says what is wrong."""


def save_policy(policy: Policy, path: str | os.PathLike[str]) -> None:
    """Writes a policy, exact, atomically: the old file stays whole until the new one is.

    Raises:
        OSError: (a full disk, no permission) with the old file intact.
    """
    structure = policy.structure
    metadata = {
        "base": json.dumps(structure.base.to_dict()),
        "parametrisation": json.dumps(dataclasses.asdict(structure.kind)),
    }
    tensors = {name: tensor.contiguous() for name, tensor in policy.state_dict().items()}
    write_atomically(Path(path), save(tensors, metadata))


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Reads `save_policy`'s file, to the same bits; nothing in it is executed.

    Raises:
        PolicyError: for anything else, or numbers that are not finite.
    """
    file = require_regular(Path(path), PolicyError)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a mapping
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("it holds numbers that are not finite")
        base = Table.from_dict(parse_json(metadata["base"], PolicyError, "its base"))
        kind = parse_json(metadata["parametrisation"], PolicyError, "its parametrisation")
        kind = Parametrisation(**{**kind, **{k: tuple(kind[k]) for k in LISTS}})
        policy = Policy(base, kind, *_sizes(tensors), mix=tensors.get("mix"))
        policy.load_state_dict(tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PolicyError(f"{path} is no policy of ours ({str(error)[:200]}): give a file of save_policy") from error
    return policy


def _sizes(tensors: dict[str, Tensor]) -> tuple[int, int]:
    """context_size and width; the weights prove them, so that no file makes us allocate more than it holds."""
    width, *others = tensors["hidden.weight"].shape
    context = tensors["context.weight"] if "context.weight" in tensors else None
    if others != [width] or (context is not None and (context.ndim != 2 or len(context) != width)):
        raise ValueError(f"hidden.weight of shape {tuple(tensors['hidden.weight'].shape)} does not fit the others")
    return 0 if context is None else context.shape[1], width
