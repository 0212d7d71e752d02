"""Tests of a policy that accelerates against the plain solver, on held-out samples with the same noise."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..accelerators.heads import Heads
from ..denoisers.rows import samples_together
from ..runs.processes import Workers
from ..solvers.table import Table
from .acceleration_config import AccelerationConfig
from .acceleration_rollout import travel
from .acceleration_state import AccelerationState, Measured, Passing, Tested
from .conservative import Verdict, decide, level
from .reward import Normalisation, normalisation
from .step_reward import discounted, quality_of
from .task import Score, Task
from .testing import BLOCK, scored_otherwise


class AccelerationTester:
    """The held-out samples of a run, the scores that are measured on them, and what is earned by scores and calls.

    Args:
        task: whose `tested` samples these are.
        table: the plain solver.
    """

    def __init__(self, task: Task, table: Table, config: AccelerationConfig, workers: Workers) -> None:
        self.task, self.table, self.config, self.workers = task, table, config, workers
        self.scores: dict[str, Score] = {**task.scores, **task.watched}
        self.draws = task.tested(config.held_out)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        # A power of two, so that all looks begin where a block does.
        together = min(samples_together(task.model.shape, BLOCK), task.model.rows())  # a call is not split
        self.block = 2 ** int(math.log2(together))

    def plain(self, table: Table | None = None) -> Tensor:
        """Scores (S, N) of the plain solver, or of another table."""
        return self._measured(None, self.table if table is None else table, 0, len(self.draws))[:-1]

    def changed(self, given: Tensor) -> bool:
        """Whether the plain solver's first samples are no longer scored as they were; see `scored_otherwise`."""
        first = min(BLOCK, len(self.draws))
        again = self._measured(None, self.table, 0, first)[:-1]
        return scored_otherwise(self.scores, given[:, :first], again, "plain solver", self.workers)

    def quality(self, raw: dict[str, Tensor], given: Tensor) -> Tensor:
        """q (B,) of scores by name; `given` are those of the plain solver."""
        if self.config.reward_shift is None:
            weighed = [self.task.weights.get(name, 1.0) * raw[name].double() for name in self.task.scores]
            return torch.stack(weighed).sum(0)
        return quality_of(self.task.combined(raw, self.scales(given)), self.config.reward_shift)

    def scales(self, given: Tensor) -> dict[str, Normalisation]:
        """By how much each score that is learned from is moved and divided."""
        return {name: normalisation(row) for name, row in zip(self.task.scores, given, strict=False)}

    def earned(self, quality: Tensor, calls: Tensor) -> Tensor:
        """r (B,)."""
        return discounted(quality, calls, self.config.decay)

    def test(self, state: AccelerationState, heads: Heads) -> tuple[AccelerationState, Tested]:
        """The state with the policy's likeliest choices tested, and what came of it.

        The candidate number k may pass by chance with a probability of `level(risk, k)`, which together are at most
        `risk`. Of all that passed, the one whose gain's lower bound is largest is kept.
        """
        parts: list[Tensor] = []
        calls = torch.full_like(state.given[0], self.table.nfe)
        plain = self.earned(self.quality(self._named(state.given), state.given), calls)

        def differences(first: int, last: int) -> Tensor:
            parts.append(self._measured(heads, self.table, first, last))
            own = self.quality(self._named(parts[-1]), state.given)
            return self.earned(own, parts[-1][-1]) - plain[first:last]

        interval, verdict, _ = decide(differences, len(self.draws), level(self.config.risk, state.looks + 1))
        found = torch.cat(parts, 1)
        count = found.shape[1]
        beside = self.told_of(state.given[:, :count], float(self.table.nfe), state.given)
        tested = Tested(self.told(found, state.given), beside, interval, verdict)
        state = replace(state, looks=state.looks + 1)
        better = state.passed is None or interval.low > state.passed.interval.low
        if verdict is Verdict.PASSED and better:
            state = replace(state, best=state.vector, passed=Passing(state.iteration, interval, tested.policy))
        return state, tested

    def told(self, found: Tensor, given: Tensor) -> Measured:
        """Means of scores and calls (S + 1, n)."""
        named, calls = self._named(found), found[-1]
        quality = self.quality(named, given)
        means = {name: float(row.mean()) for name, row in zip(self.scores, found, strict=False)}
        means["quality"] = float(quality.mean())
        earned = self.earned(quality, calls)
        return Measured(means, float(calls.mean()), float(calls.min()), float(calls.max()), float(earned.mean()))

    def told_of(self, scores: Tensor, calls: float, given: Tensor) -> Measured:
        """Means of scores (S, n) of a solver that takes as many calls for every sample."""
        return self.told(torch.cat([scores, torch.full_like(scores[:1], calls)]), given)

    def measure(self, heads: Heads) -> Tensor:
        """Scores and calls (S + 1, N) of a policy's likeliest choices."""
        return self._measured(heads, self.table, 0, len(self.draws))

    def _measured(self, heads: Heads | None, table: Table, first: int, last: int) -> Tensor:
        """Scores and, last, calls (S + 1, last - first) of samples first ... last - 1; without heads, of a table."""
        starts = range(first, last, self.block)

        def part(i: int) -> Tensor:
            rows = slice(starts[i], min(starts[i] + self.block, last))
            own, out = self.draws[rows], torch.zeros(len(self.scores) + 1, last - first, dtype=torch.float64)
            at = slice(rows.start - first, rows.stop - first)
            if heads is None:
                rollout, out[-1, at] = self.task.roll_out(table.coefficients(), own, self.dtype), float(table.nfe)
            else:
                trip = travel(self.task, table, heads, own, None, self.dtype)
                rollout, out[-1, at] = trip.rollout, trip.calls
            for row, score in zip(out, self.scores.values(), strict=False):
                row[at] = score(rollout)
            return out.flatten()

        size = (len(self.scores) + 1) * (last - first)
        return (self.workers.mean(len(starts), size, part) * len(starts)).reshape(-1, last - first)

    def _named(self, raw: Tensor) -> dict[str, Tensor]:
        """What is learned from, by name; the task's own scores come first."""
        return dict(zip(self.task.scores, raw, strict=False))
