"""Samples batch by batch: what a solver makes of each, and what that costs. Only one batch is on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model, PassesGuidance, denoised_at
from ..solvers.answers import MakeAnswer, batched
from ..solvers.solve import solve
from ..solvers.walk import Answer, Ask, Rule

Counted = tuple[Tensor, int, int]  # end points, sequential calls, evaluations of one sample
Run = Callable[[Denoiser, Tensor], Counted]  # of unit noise


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


class CountingRows(PassesGuidance):
    """A denoiser that counts its calls and the rows that they hold, for solvers that do not walk."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.calls, self.rows = denoiser, 0, 0

    def _denoised(self, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return denoised_at(self.denoiser, x, sigma, factor)


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


def ruled(rule: Rule, sigmas: Tensor, answer: MakeAnswer = batched) -> Run:
    """A rule on these sigmas, its questions counted."""

    def run(denoiser: Denoiser, noise: Tensor) -> Counted:
        counting = Counting(answer(denoiser))
        return solve(rule, denoiser, noise, sigmas, lambda _: counting), counting.calls, counting.points

    return run


def run_all(run: Run, batches: Sequence[Batch], timings: int = 1) -> Solved:
    """Solves every batch, and a full one again until there are this many timings of full ones.

    What it costs is what the most expensive batch does, for solvers that go on until something is reached.

    Raises:
        FloatingPointError: when the solver leaves the finite numbers.
    """
    full = [batch for batch in batches if len(batch.noise) == len(batches[0].noise)]
    again = [full[0]] * max(timings - len(full), 0)
    runs = [_solved(run, batch) for batch in batches]
    seconds = [one.seconds for one, batch in zip(runs, batches, strict=True) if len(batch.noise) == len(full[0].noise)]
    seconds += [_solved(run, batch).seconds for batch in again]
    ends = torch.cat([one.end for one in runs])
    calls, evaluations = max(one.calls for one in runs), max(one.evaluations for one in runs)
    return Solved(ends, calls, evaluations, statistics.median(seconds))


def _solved(run: Run, batch: Batch) -> Solved:
    noise = batch.noise_on_device()
    began = time.perf_counter()
    end, calls, evaluations = run(batch.denoiser, noise)
    if end.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return Solved(end.cpu(), calls, evaluations, seconds)
