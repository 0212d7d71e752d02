"""Tests of the mean table against the given one, on held-out samples with the same noise."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..denoisers.rows import samples_together
from ..runs.processes import Workers
from ..solvers.parallel import Coefficients
from ..solvers.table import Table
from .closeness import Closeness
from .config import RefineConfig
from .conservative import Interval, Verdict, decide, level
from .policy import Policy
from .reward import Normalisation, normalisation
from .state import Evaluation, Passed, RefineState
from .task import Rollout, Score, Task

log = logging.getLogger("epd")
BLOCK = 64  # held-out samples that are solved together, of large ones fewer
SHOWN = 16  # pictures of an evaluation
CHANGED = 0.01  # standard deviations by which no rounding moves a score on average


def scored_otherwise(names: Iterable[str], before: Tensor, now: Tensor, of: str, workers: Workers) -> bool:
    """Whether scores (S, n) are others than when a run began, which is said: code of the model or of a reward has
    changed, or a reward is random. What goes on is another run, perhaps the intended one; but no gain may be the
    difference between two rewards, so that what is compared with has to be measured anew.
    """
    rows = zip(names, before, now, strict=True)
    apart = {name: (float((new - old).abs().mean()), normalisation(old).scale) for name, old, new in rows}
    changed = {name: distance for name, (distance, scale) in apart.items() if distance > CHANGED * scale}
    if workers.rank == 0:
        for name, distance in changed.items():
            log.warning(
                "%s scores the %s otherwise than when this run began, by %.3g on average: it is measured anew, and "
                "what had passed its test has to pass again; if that is not what you want, undo what has changed in "
                "the model or the reward, or choose another --out", name, of, distance,
            )  # fmt: skip
    return bool(changed)


class Tester:
    """The held-out samples of a run, the scores that are measured on them, and the given table's.

    Args:
        task: whose `tested` samples these are.
        base: the given table.
    """

    def __init__(self, task: Task, base: Table, config: RefineConfig, workers: Workers) -> None:
        self.task, self.base, self.config, self.workers = task, base, config, workers
        self.draws = task.tested(config.held_out)
        self.scores: dict[str, Score] = {**task.scores, **task.watched}
        self.counts = dict.fromkeys(self.scores, config.held_out)  # how many of the first samples have each score
        if config.converged and Closeness.name not in self.scores:
            self.scores[Closeness.name] = Closeness(task.model, config.tolerance)
            self.counts[Closeness.name] = min(config.converged, config.held_out)
        # A power of two, so that all looks begin where a block does: end points depend on what they are solved with.
        self.block = 2 ** int(math.log2(samples_together(task.model.shape, BLOCK)))
        self.pictures: Tensor | None = None

    def given(self) -> Tensor:
        """The given table's scores (S, N)."""
        return self._measured(self._constant(self.base), 0, self.config.held_out)

    def changed(self, given: Tensor) -> bool:
        """Whether the given table's first samples are no longer scored as they were; see `scored_otherwise`."""
        first = min(BLOCK, self.config.held_out)
        again = self._measured(self._constant(self.base), 0, first)
        return scored_otherwise(self.scores, given[:, :first], again, "given table", self.workers)

    def scales(self, given: Tensor) -> dict[str, Normalisation]:
        """By how much each score that is learned from is moved and divided."""
        return {name: normalisation(row) for name, row in zip(self.task.scores, given, strict=False)}

    def reward_of_given(self, given: Tensor) -> Tensor:
        """The given table's reward of every held-out sample (N,)."""
        return self.task.combined(self._by_name(given), self.scales(given))

    def test(self, state: RefineState, policy: Policy) -> tuple[RefineState, Evaluation]:
        """The state with its policy's mean table tested, and what came of it.

        The candidate number k of a run may pass by chance with a probability of `level(risk, k)`, which together are
        at most `risk`. Of all that passed, the one whose gain's lower bound is largest is kept.
        """
        context = self.task.mean_context(self.config.held_out)
        table = policy.mean(context)
        candidate = self._constant(table) if context is None else self._own(policy)
        interval, verdict, measured = self._tested(candidate, state.given, state.looks + 1)
        evaluation = Evaluation(
            means=self._means(measured),
            given=self._means(state.given[:, : measured.shape[1]]),
            interval=interval,
            verdict=verdict,
            table=table,
            pictures=self.pictures,
        )
        state = replace(state, looks=state.looks + 1)
        if verdict is not Verdict.PASSED or (state.passed is not None and interval.low <= state.passed.interval.low):
            return state, evaluation
        of_table: Interval | None = interval
        if context is not None:  # the one table is another candidate
            of_table, verdict, _ = self._tested(self._constant(table), state.given, state.looks + 1)
            state, of_table = replace(state, looks=state.looks + 1), of_table if verdict is Verdict.PASSED else None
        return replace(state, best=state.vector, passed=Passed(state.iteration, interval, of_table)), evaluation

    def _tested(
        self, coefficients: Callable[[slice], Coefficients], given: Tensor, look: int
    ) -> tuple[Interval, Verdict, Tensor]:
        """Of candidate number `look`: the interval of its gain, the verdict, and the scores that were measured."""
        parts: list[Tensor] = []

        def differences(first: int, last: int) -> Tensor:
            parts.append(self._measured(coefficients, first, last))
            raw, scales = self._by_name(parts[-1]), self.scales(given)
            return self.task.combined(raw, scales) - self.task.combined(self._by_name(given[:, first:last]), scales)

        interval, verdict, _ = decide(differences, self.config.held_out, level(self.config.risk, look))
        return interval, verdict, torch.cat(parts, 1)

    def _constant(self, table: Table) -> Callable[[slice], Coefficients]:
        c = table.coefficients()
        return lambda rows: c

    def _own(self, policy: Policy) -> Callable[[slice], Coefficients]:
        """The mean table of each sample's context."""

        def own(rows: slice) -> Coefficients:
            context = self.task.contexts(self.draws[rows])
            assert context is not None, "asked where there is one"
            return policy.expected(context).coefficients()

        return own

    def _measured(self, coefficients: Callable[[slice], Coefficients], first: int, last: int) -> Tensor:
        """Every score of the samples first..last-1, (S, last - first); zero where one is not measured."""
        starts = range(first, last, self.block)

        def part(i: int) -> Tensor:
            rows = slice(starts[i], min(starts[i] + self.block, last))
            rollout = self.task.roll_out(coefficients(rows), self.draws[rows], getattr(torch, self.config.dtype))
            out = torch.zeros(len(self.scores), last - first, dtype=torch.float64)
            for row, (name, score) in zip(out, self.scores.items(), strict=True):
                count = min(self.counts[name], rows.stop) - rows.start
                if count > 0:
                    few = rollout if count == len(rollout.states) else rollout[:count]
                    row[rows.start - first : rows.start - first + count] = score(few)
            if rows.start == 0:
                self.pictures = _pictures(rollout)
            return out.flatten()

        size = len(self.scores) * (last - first)
        return (self.workers.mean(len(starts), size, part) * len(starts)).reshape(len(self.scores), -1)

    def _by_name(self, raw: Tensor) -> dict[str, Tensor]:
        """What is learned from, by name; the task's own scores come first."""
        return dict(zip(self.task.scores, raw, strict=False))

    def _means(self, raw: Tensor) -> dict[str, float]:
        counts = {name: min(count, raw.shape[1]) for name, count in self.counts.items()}
        return {name: float(row[: counts[name]].mean()) for name, row in zip(self.scores, raw, strict=True)}


def _pictures(rollout: Rollout) -> Tensor | None:
    """The samples as pictures, where states are any."""
    if len(rollout.model.shape) != 3:
        return None
    images = rollout[:SHOWN].images
    return images.detach().cpu() if images.ndim == 4 else None
