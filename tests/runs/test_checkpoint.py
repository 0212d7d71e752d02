"""Checkpoints: what is read back is what was written, wherever it lies in the file."""

from __future__ import annotations

from pathlib import Path

import torch

from epd.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def test_tensors_are_read_back_to_where_products_round_as_before(tmp_path: Path) -> None:
    """Aligned as torch aligns its own: processors add up unaligned numbers in another order."""
    path = tmp_path / "checkpoint.safetensors"
    tensors = {f"t{n}": torch.randn(n, dtype=torch.float64) for n in (1, 3, 4, 7, 50)}
    save_checkpoint(path, Checkpoint(tensors, {"iteration": 3}), {"seed": 0})
    found, identity = load_checkpoint(path)
    assert identity == {"seed": 0} and found.numbers == {"iteration": 3}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.tensors.values())
