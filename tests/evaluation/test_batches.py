"""Comparing keeps its samples in main memory: one batch at a time is where it is solved."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from helpers.toy_models import toy_mixture
from torch import Tensor

from epd.evaluation.batches import Batch
from epd.evaluation.compare import compare


def test_one_batch_at_a_time_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy stands for what is on an accelerator; so does every end point, until it is in main memory again."""
    living: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most: list[int] = []

    def on_device(batch: Batch) -> Tensor:
        gc.collect()
        most.append(len(living))
        copied = batch.noise.clone()
        living.add(copied)
        return copied

    brought: list[int] = []
    to_main_memory = Tensor.cpu

    def counted(x: Tensor) -> Tensor:
        brought.append(len(x) if x.ndim else 0)
        return to_main_memory(x)

    monkeypatch.setattr(Batch, "noise_on_device", on_device)
    monkeypatch.setattr(Tensor, "cpu", counted)
    compare(toy_mixture(), {}, (3,), samples=64, batch=16, tuning=16, solvers=["Heun"], dtype=torch.float64)
    assert len(most) >= 8 and set(most[1:]) <= {0, 1}  # the one before may still be held by its loop
    assert brought.count(16) >= len(most), "every end point goes to main memory batch by batch"


def test_noise_waits_in_main_memory() -> None:
    batch = Batch(lambda x, sigma: x, torch.zeros(2, 3), "meta")
    assert batch.noise.device.type == "cpu" and batch.noise_on_device().device.type == "meta"
