"""Samples batch by batch: what a solver makes of each, and what that costs. Only one batch is on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model
from ..solvers.answers import MakeAnswer, batched
from ..solvers.solve import solve
from ..solvers.walk import Answer, Ask, Rule


@dataclass(frozen=True)
class Batch:
    """Samples that are solved together.

    Args:
        denoiser: bound to them.
        noise: (B, *S) in main memory; thousands of samples of a large model fill a device.
        device: where they are solved.
    """

    denoiser: Denoiser
    noise: Tensor
    device: str

    def noise_on_device(self) -> Tensor:
        """The noise where it is solved; keep it no longer than that takes."""
        return self.noise.to(self.device)


class Counting:
    """An answer that counts the questions, which are a solver's sequential calls whoever answers, and their points."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.calls, self.points = answer, 0, 0

    def __call__(self, ask: Ask) -> Tensor:
        self.calls, self.points = self.calls + 1, self.points + len(ask.points)
        return self.answer(ask)


@dataclass(frozen=True)
class Solved:
    """End points of one solver, in main memory, and what they cost, recorded."""

    end: Tensor
    calls: int
    evaluations: int
    seconds: float


def batches_of(model: Model, seeds: Sequence[int], size: int, dtype: torch.dtype) -> Iterator[Batch]:
    """The samples of these seeds, `size` in a batch but for the last one."""
    for first in range(0, len(seeds), size):
        part = seeds[first : first + size]
        yield Batch(model.for_seeds(part), unit_noise(part, model.shape, dtype), model.device)


def solve_all(
    rule: Rule, sigmas: Tensor, batches: Sequence[Batch], timings: int = 1, answer: MakeAnswer = batched
) -> Solved:
    """Solves every batch, and a full one again until there are this many timings of full ones.

    Raises:
        FloatingPointError: when the solver leaves the finite numbers.
    """
    full = [batch for batch in batches if len(batch.noise) == len(batches[0].noise)]
    again = [full[0]] * max(timings - len(full), 0)
    runs = [_solved(rule, sigmas, batch, answer) for batch in batches]
    seconds = [run.seconds for run, batch in zip(runs, batches, strict=True) if len(batch.noise) == len(full[0].noise)]
    seconds += [_solved(rule, sigmas, batch, answer).seconds for batch in again]
    ends = torch.cat([run.end for run in runs])
    return Solved(ends, runs[-1].calls, runs[-1].evaluations, statistics.median(seconds))


def _solved(rule: Rule, sigmas: Tensor, batch: Batch, answer: MakeAnswer) -> Solved:
    counting, noise = Counting(answer(batch.denoiser)), batch.noise_on_device()
    began = time.perf_counter()
    end = solve(rule, batch.denoiser, noise, sigmas, lambda _: counting)
    if end.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return Solved(end.cpu(), counting.calls, counting.points, seconds)
