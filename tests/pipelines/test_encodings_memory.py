"""Prompt encodings: one call's copies live where the pipeline computes, however many samples and batches there are."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from helpers import tiny_pipelines
from helpers.pipeline_families import FAMILIES
from torch import Tensor

from epd.denoisers.live_memory import LiveMemory
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.noise import unit_noise
from epd.denoisers.preconditioning import edm
from epd.denoisers.rows import limit_rows
from epd.pipelines.prompts import Encodings

ROW = 2 * 77 * 32 * 4  # bytes of one sample's prompt and its negative: 77 tokens of 32 float32 numbers
SIGMA = torch.tensor(0.7, dtype=torch.float64)


def kept_after(*batches: Sequence[int], limit: int | None = None) -> float:
    """How many samples' encodings are alive after each batch's anchor and fan of two points."""
    model: Any = FAMILIES["sd"].model(tiny_pipelines.build("sd"), 2.0)
    model = model if limit is None else limit_rows(model, limit)
    bound = [model.for_seeds(seeds) for seeds in batches]
    x = unit_noise(range(32), model.shape)
    gc.collect()
    with torch.no_grad(), LiveMemory() as memory:
        for denoiser, seeds in zip(bound, batches, strict=True):
            for rows in (len(seeds), 2 * len(seeds)):
                denoiser(x[:rows], SIGMA)
        gc.collect()
    return memory.now / ROW


def test_sixteen_samples_keep_one_calls_encodings() -> None:
    """48 copies were kept: 16 of the anchor's call and 32 of the fan's, and as many again for each further batch."""
    assert 32 <= kept_after(range(16)) < 33
    assert 32 <= kept_after(range(16), range(16, 32), range(32, 48)) < 33


def test_a_row_limit_bounds_the_encodings_too() -> None:
    assert 4 <= kept_after(range(16), limit=4) < 5


def test_encodings_of_two_batches_that_take_turns_are_their_own() -> None:
    model = FAMILIES["sd"].model(tiny_pipelines.build("sd"), 2.0)
    x = unit_noise(range(2), model.shape)
    one, other = model.for_seeds([0, 1]), model.for_seeds([2, 0])
    with torch.no_grad():
        first, second = one(x, SIGMA), other(x, SIGMA)
        assert not torch.allclose(first, second, atol=1e-4)
        assert torch.equal(one(x, SIGMA), first) and torch.equal(other(x, SIGMA), second)


def test_a_run_that_was_cut_short_leaves_no_encoding_behind() -> None:
    """`encode_prompt` is called twice in a run; after one call and an error the next run starts with the first."""
    encodings = Encodings(lambda index: [torch.tensor([[float(i)] for i in index]), torch.zeros(len(index), 1)], 3)
    assert float(encodings.rows([2])()) == 2.0
    assert float(encodings.rows([2])()) == 2.0


def test_conditions_of_a_network_are_kept_for_two_kinds_of_call() -> None:
    """Calls of 1, 2, ... 8 points a sample would keep 36 copies of each row."""

    def network(x: Tensor, timestep: Tensor, conditions: Rows) -> Tensor:
        return x * conditions["text"].mean((1, 2))[:, None]

    def kept(points: Sequence[int], guidance: float) -> float:
        text = torch.ones(4, 77, 32)
        null = {"text": torch.zeros(1, 77, 32)}
        model = NetworkDenoiser(network, edm(), (3,), 0.01, 80.0, null=null).bind({"text": text}, guidance)
        with torch.no_grad(), LiveMemory() as memory:
            for k in points:
                model(torch.ones(4 * k, 3), SIGMA)
            gc.collect()
        return memory.now / (77 * 32 * 4)

    assert kept([1, 2, 1, 2], 1.0) < 8.1  # the anchor's rows are the bound ones themselves
    assert kept(range(1, 9), 1.0) < 4 * (7 + 8) + 0.1
    assert kept(range(1, 9), 2.0) < 2 * 4 * (7 + 8) + 0.1
