"""Training samples by their place in a run of seeds: unit noise and the teacher's states, of a portion at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from .teacher import Teacher

KEPT = 2**28  # bytes: samples of so many are kept in main memory, more are read from disk each time


def kept_bytes(count: int, states: int, numbers: int, size: int) -> int:
    """Of noise and states of `count` samples of that many numbers, as far as they are kept; 0 where they are not."""
    whole = count * (1 + states) * numbers * size
    return whole if whole <= KEPT else 0


class Samples:
    """Those of a teacher, which has prepared these seeds. What a call returns lies in main memory.

    However many there are, at most `KEPT` bytes of them are kept: of more, files of blocks are mapped one after
    another, and only what is asked for is read. An accelerator's memory may be smaller yet, so nothing is moved there.

    Args:
        seeds: of all samples.
    """

    def __init__(self, teacher: Teacher, seeds: range) -> None:
        self.seeds, self._teacher = seeds, teacher
        self._dtype: torch.dtype = getattr(torch, teacher.config.dtype)
        states = 1 if teacher.ends else len(teacher.sigmas) - 1
        kept = kept_bytes(len(seeds), states, math.prod(teacher.model.shape), self._dtype.itemsize)
        self._kept = self._read(range(len(seeds))) if kept else None

    def __call__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, *S) noise, and (T, B, *S) states of the samples at these places."""
        if self._kept is None:
            return self._read(rows)
        noise, states = self._kept
        places = torch.as_tensor(rows)
        return noise[places], states[:, places]

    def _read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        seeds = [self.seeds[row] for row in rows]
        return unit_noise(seeds, self._teacher.model.shape, self._dtype), self._teacher.states(seeds)
