"""What `bench_refine` measures of a solver: the verifier's scores sample by sample, and what no reward asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..denoisers.shapes_verifier import verify
from ..denoisers.shapes_world import render
from ..distill.teacher import POOL_SEEDS
from ..evaluation.handmade import HandMade, Schedule, candidate_schedules, handmade
from ..evaluation.metrics import frechet_distance
from ..rl.closeness import Closeness
from ..rl.task import Draws, Rollout
from ..solvers.walk import Rule
from .refined_cells import SUBJECTS, Subject

SCORES = ("all", "frac", "graded")
TUNING_SEEDS = 2**20  # far from the noise that is measured, trained and tested on
RESAMPLES = 2000


class Judge:
    """The measured samples of a subject, and its tuning samples."""

    def __init__(self, subject: Subject) -> None:
        if subject.samples > TUNING_SEEDS or TUNING_SEEDS + subject.tuning > POOL_SEEDS:
            raise ValueError(f"{subject.samples} samples reach into the noise that solvers are chosen or learned on")
        self.subject, self.task = subject, subject.task()
        self.model = self.task.model
        self.draws, self.tuning = self._draws(0, subject.samples), self._draws(TUNING_SEEDS, subject.tuning)
        self.closeness = Closeness(self.model, subject.tolerance)
        candidates = candidate_schedules(self.model.path, self.model.sigma_min, self.model.sigma_max)
        self.schedules: dict[str, Schedule] = candidates

    def _draws(self, first: int, count: int) -> Draws:
        """Held-out prompts in turn, noise of the seeds from `first` on."""
        held_out = self.task.held_out
        return Draws(tuple(held_out[i % len(held_out)] for i in range(count)), tuple(range(first, first + count)))

    def rollouts(self, rule: Rule, sigmas: Tensor, draws: Draws) -> Iterator[Rollout]:
        """Finished samples, batch by batch."""
        for at in range(0, len(draws), self.subject.batch):
            yield self.task.solved(rule, sigmas, draws[at : at + self.subject.batch])

    def measured(self, rule: Rule, sigmas: Tensor) -> dict[str, Any]:
        """Of the measured samples: every score, the distances to the first converged end points, and the Frechet
        distance of the pictures to renderings of the same prompts.
        """
        parts = list(self.rollouts(rule, sigmas, self.draws))
        images = torch.cat([part.images for part in parts]).clamp(0, 1)
        verdict = verify(images, [text for part in parts for text in part.prompts])
        left, distances = self.subject.ends, []
        while left > 0 and parts:
            rollout = parts.pop(0)[:left]
            left -= len(rollout.draws)
            distances += (-self.closeness(rollout)).tolist()
        return {
            **{name: _rounded(getattr(verdict, name).tolist()) for name in SCORES},
            "distance": _rounded(distances),
            "frechet": frechet_distance(pooled(images), self._of_renderings),
        }

    @functools.cached_property
    def _of_renderings(self) -> Tensor:
        texts = self.task.texts(self.draws.conditions)
        return pooled(render(texts, torch.Generator().manual_seed(0)))

    def graded(self, rule: Rule, sigmas: Tensor) -> float:
        """Mean of `graded` on the tuning samples; minus infinity where the solver leaves the finite numbers."""
        try:
            parts = list(self.rollouts(rule, sigmas, self.tuning))
        except FloatingPointError:
            return -float("inf")
        graded = [verify(part.images.clamp(0, 1), part.prompts).graded for part in parts]
        return float(torch.cat(graded).mean())

    def handmade(self, calls: int) -> list[dict[str, Any]]:
        """Every hand-made method at so many calls, in the variant and on the schedule that are best by `graded` on the
        tuning samples, measured.
        """
        best: dict[str, tuple[float, HandMade, str]] = {}
        for solver in handmade(self.model.path):
            steps = solver.steps(calls)
            for name, schedule in self.schedules.items() if steps > 0 else ():
                sigmas = schedule(steps)
                graded = self.graded(solver.rule(sigmas), sigmas)
                if solver.group not in best or graded > best[solver.group][0]:
                    best[solver.group] = graded, solver, name
        out: list[dict[str, Any]] = []
        for group, (graded, solver, name) in best.items():
            sigmas = self.schedules[name](solver.steps(calls))
            said = {"group": group, "solver": solver.name, "schedule": name, "tuned": round(graded, 4)}
            out.append({**said, "scores": self.measured(solver.rule(sigmas), sigmas)})
        return out

    def reference(self) -> tuple[Rule, Tensor]:
        """The solver that stands for as good as it gets."""
        name, schedule, steps = self.subject.reference
        sigmas = self.schedules[schedule](steps)
        solver = next(solver for solver in handmade(self.model.path) if solver.name == name)
        return solver.rule(sigmas), sigmas


@functools.cache
def judge_of(name: str) -> Judge:
    """Of a subject by name; its converged end points are solved once in a process."""
    return Judge(SUBJECTS[name])


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]


def pooled(images: Tensor) -> Tensor:
    """(B, 48) features of pictures (B, 3, 16, 16): the means of 4 x 4 pixels, that is where there is which colour."""
    return functional.avg_pool2d(images, 4).flatten(1)


@functools.lru_cache(maxsize=1)  # dozens of intervals of one table are of the same draws
def _drawn(resamples: int, count: int, seed: int) -> Tensor:
    """(resamples, count) how often each sample is drawn: a matrix product is far faster than gathering."""
    counts = torch.zeros(resamples, count, dtype=torch.float64)
    drawn = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def bootstrap(
    rows: Tensor, statistic: Callable[[Tensor], Tensor], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of the means of R paired rows of scores (R, n), and its 95 % interval: value, low, high.

    Samples are drawn with replacement, the same of every row, so that what a sample does to all of them cancels.
    Percentile bootstrap, doi 10.1214/aos/1176344552.

    Args:
        statistic: (..., R) -> (...).
    """
    rows = rows.double()
    count = rows.shape[1]
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = statistic(_drawn(resamples, count, seed) @ rows.T / count).quantile(bounds).tolist()
    return float(statistic(rows.mean(1))), low, high
