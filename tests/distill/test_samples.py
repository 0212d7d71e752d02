"""Samples that are read from disk in portions: the same bits, and no more memory for a larger cache."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from helpers.counting import counting
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd.denoisers.live_memory import LiveMemory
from epd.denoisers.noise import unit_noise
from epd.distill import samples
from epd.distill.cost import estimate
from epd.distill.plan import make_plan
from epd.distill.samples import KEPT, Samples, kept_bytes
from epd.distill.teacher import POOL_SEEDS, Teacher
from epd.distill.train import distill
from epd.distill.update import Update

NUMBERS = 64 * 64  # of a sample


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_read_is_what_is_kept(ends: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the edge of a block, twice the same one, in any order; and against the cache and the noise themselves."""
    sigmas = torch.tensor([20.0, 2.0, 0.02], dtype=torch.float64)
    teacher = Teacher(toy_mixture(), toy_config(teacher="heun", pool=300), sigmas, cache, ends=ends)
    seeds = range(POOL_SEEDS, POOL_SEEDS + 300)
    kept = Samples(teacher, seeds)
    monkeypatch.setattr(samples, "KEPT", 0)
    read = Samples(teacher, seeds)
    rows = [299, 3, 257, 255, 256, 3]
    expected = unit_noise([POOL_SEEDS + row for row in rows], (1, 2, 2), torch.float64), teacher.states(seeds)[:, rows]
    assert expected[1].shape[0] == (1 if ends else 2)
    for found in (kept(rows), read(rows)):
        assert all(map(torch.equal, found, expected))


def trained(pool: int, monkeypatch: pytest.MonkeyPatch, kept: int) -> list[Update]:
    monkeypatch.setattr(samples, "KEPT", kept)
    model = counting((1, 64, 64), plain=True)
    config = toy_config(family="epd", calls=4, optimizer="adam", objective="both", pool=pool, validation=32, batch=16,
                        accumulate=1, iterations=2, screening=1, teacher="euler", schedule="polynomial",
                        dtype="float32", validate_every=1)  # fmt: skip
    return list(distill(model, make_plan(model, config)))


def peak(pool: int, monkeypatch: pytest.MonkeyPatch, kept: int) -> int:
    """Bytes that live while a table is learned from a cache that is there."""
    trained(pool, monkeypatch, kept)
    gc.collect()
    with LiveMemory() as memory:
        trained(pool, monkeypatch, kept)
    return memory.peak


def vectors(updates: list[Update]) -> list[Tensor]:
    return [update.state.vector for update in updates]


def test_memory_does_not_grow_with_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1 block to 4, each of 2 MiB with its two states; what is mapped of a file counts here as if it were read."""
    small, large = (peak(pool, monkeypatch, 0) for pool in (64, 256))
    assert large < 1.01 * small
    assert peak(256, monkeypatch, KEPT) - peak(64, monkeypatch, KEPT) > 0.9 * 192 * 3 * NUMBERS * 4


def test_a_table_is_the_same_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, read = (vectors(trained(128, monkeypatch, limit)) for limit in (KEPT, 0))
    assert all(map(torch.equal, kept, read)) and not torch.equal(kept[0], kept[-1])


def test_a_dry_run_counts_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = counting((1, 64, 64), plain=True)
    plan = make_plan(model, toy_config(pool=256, validation=128, dtype="float32", objective="end"))
    whole = [count * 2 * NUMBERS * 4 for count in (256, 128)]
    for limit, expected in ((whole[0], sum(whole)), (whole[1], whole[1]), (0, 0)):
        monkeypatch.setattr(samples, "KEPT", limit)
        assert estimate(model, plan).pool_memory == expected
    assert kept_bytes(1, 1, 1, 4) == 0
