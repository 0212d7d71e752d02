"""What a trainer needs to go on, in one file that is whole or not there: tensors exact, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..formats.files import require_regular, write_atomically


class RunError(ValueError):
    """A run folder that cannot be used as asked: the message says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a trainer.

    Args:
        tensors: by name, all finite.
        numbers: whatever else it needs, ready for JSON; infinity is allowed, as Python reads it back.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Writes a checkpoint of the run with this identity, atomically.

    Raises:
        OSError: (a full disk, no permission) with the checkpoint before it intact.
    """
    # Clones: safetensors refuses tensors that share memory, as the present numbers and the best ones may.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in checkpoint.tensors.items()}
    metadata = {"numbers": json.dumps(dict(checkpoint.numbers)), "run": json.dumps(dict(identity))}
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint and the identity of its run.

    Raises:
        RunError: for a file that is damaged, or holds numbers that are not finite.
    """
    try:
        require_regular(path, RunError)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Clones: a file's tensors lie anywhere in memory, and where they lie decides how some products round.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        numbers, identity = json.loads(metadata["numbers"]), json.loads(metadata["run"])
        if not isinstance(numbers, dict) or not isinstance(identity, dict):
            raise ValueError("its metadata is no mapping")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise damaged(path, "it holds numbers that are not finite")
    return Checkpoint(tensors, numbers), identity


def damaged(path: Path, problem: str) -> RunError:
    """The error for a checkpoint that cannot be used; it asks for no deletion, as what is there protects the result."""
    return RunError(
        f"{path} is damaged ({problem[:120]}): put a copy of it back, or start again with another --out; nothing was "
        "changed here"
    )
