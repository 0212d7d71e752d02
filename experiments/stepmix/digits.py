"""The safe tuner at work: which slopes Euler's method may reuse on the exact digits, by how much has changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ...denoisers.digits import digits_exact
from ...denoisers.noise import unit_noise
from ...rl.safe_schedule import Choose, ScheduleSpace, ScheduleTuner
from ...rl.tabular import Array, Indices, TabularMDP, one_hot
from ...rl.tabular_bounds import ExplorationBonus
from ...solvers import rules
from ...solvers.answers import batched
from ...solvers.schedules import logsnr, polynomial
from ...solvers.solve import solve
from ...solvers.walk import Ask, State, walk

STEPS, DECISIONS, REFERENCE = 12, 4, 120  # solver steps, decisions, steps of the reference
EACH = STEPS // DECISIONS  # solver steps that a decision is for
COMPUTED = {"full": 3, "two": 2, "one": 1}  # of these, from the first on; the others reuse the last slope
SPACE = ScheduleSpace({name: count / EACH for name, count in COMPUTED.items()}, (0.05, 0.6), DECISIONS, share=0.7)
BASELINE, KEPT = ("two",) * DECISIONS, 0.9  # floor: this share of what the baseline earns
WORST = 0.2  # root mean square error, of grey values in [-1, 1], at which a decision is worth nothing
PLAIN, JUDGING = (6, 7, 8), 3 * 10**6  # steps with nothing reused; the first seed of what schedules are judged on
BATCH, MEASURED, JUDGED = 1024, 40, 4  # runs in a batch; batches by which the process is measured, schedules are judged


class Sampler:
    """Runs of Euler's method whose slopes are all computed, so that it is known what reusing them costs in accuracy.

    A setting is chosen when the first slope of three steps is known; what has changed is how far that lies from the
    last one that was used, in units of its size. The quality of a decision falls linearly with the root mean square
    error that its reused slopes have put into the state, to 0 at `WORST`.

    Args:
        seed: of the first run; the next ones have the next seeds.
    """

    def __init__(self, seed: int) -> None:
        self.model, self.seed = digits_exact(), seed
        self.sigmas = polynomial(STEPS, self.model.sigma_min, self.model.sigma_max)
        self.noise = self.ends = torch.zeros(0)  # of the last batch

    @torch.no_grad()
    def __call__(self, choose: Choose, runs: int) -> Array:
        self.noise = unit_noise(range(self.seed, self.seed + runs), self.model.shape)
        self.seed += runs
        answer, spent = batched(self.model), torch.zeros_like(self.noise)
        computed, kept, errors = torch.zeros(runs), self.noise, []
        steps = walk(rules.euler(), self.noise * self.sigmas[0].item(), self.sigmas)
        asked: Ask | State | None = next(steps)
        while asked is not None:
            if isinstance(asked, State):
                self.ends, asked = asked.x, next(steps, None)
                continue
            h, within = divmod(asked.site.step, EACH)
            true = answer(asked)[0]
            if within == 0:
                changed = _rms(true - kept) / _rms(true) if h else torch.zeros(runs)
                chosen = choose(h, changed.double().numpy())
                computed, spent = torch.tensor([*COMPUTED.values()])[torch.as_tensor(chosen)], torch.zeros_like(true)
            reused = (within >= computed).reshape(-1, 1, 1, 1)
            kept = torch.where(reused, kept, true)
            spent = spent + (kept - true) * (self.sigmas[asked.site.step + 1] - self.sigmas[asked.site.step]).item()
            if within == EACH - 1:
                errors.append(_rms(spent))
            asked = steps.send(kept[None])
        return (1 - torch.stack(errors, 1).double() / WORST).clamp(0, 1).numpy()

    def rmse(self) -> float:
        """Of the last runs' end points to the converged ones."""
        sigmas = logsnr(REFERENCE, self.model.sigma_min, self.model.sigma_max)
        with torch.no_grad():
            converged = solve(rules.dpm2(), self.model, self.noise, sigmas)
        return float((self.ends - converged).square().mean().sqrt())


def process() -> dict[str, Any]:
    """The discretised process as runs of random settings show it, and what some schedules earn there and in runs."""
    generator, sampler = np.random.default_rng(0), Sampler(10**6)
    log = ScheduleTuner(SPACE, BASELINE, 0.0)
    for _ in range(MEASURED):
        log.record(*_runs(sampler, lambda _, buckets: generator.integers(0, len(COMPUTED), len(buckets))))
    mdp = log.process()
    named = {name: [[name] * SPACE.sizes[1]] * DECISIONS for name in COMPUTED}
    named["best"] = [[list(COMPUTED)[i] for i in row] for row in mdp.optimal()[0].argmax(-1)]
    return {
        "transitions": mdp.transitions.tolist(), "rewards": mdp.rewards.tolist(),
        "visits": log.known.visits.tolist(), "schedules": {k: judged(mdp, v) for k, v in named.items()},
        "plain": {str(steps): plain(steps) for steps in PLAIN},
    }  # fmt: skip


def plain(steps: int) -> float:
    """The error of Euler's method in so many steps, all computed, on the noise that schedules are judged on."""
    sampler, errors = Sampler(JUDGING), []
    sigmas = polynomial(steps, sampler.model.sigma_min, sampler.model.sigma_max)
    for _ in range(JUDGED):
        sampler.noise = unit_noise(range(sampler.seed, sampler.seed + BATCH), sampler.model.shape)
        sampler.seed += BATCH
        with torch.no_grad():
            sampler.ends = solve(rules.euler(), sampler.model, sampler.noise, sigmas)
        errors.append(sampler.rmse())
    return float(np.sqrt(np.mean(np.square(errors))))


def tuned(bonus: ExplorationBonus, batches: int, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What the tuner plays in so many batches, judged on the measured process, and the schedule that it ends with."""
    mdp = TabularMDP(measured["transitions"], measured["rewards"])
    floor = KEPT * float(mdp.value(SPACE.schedule(BASELINE)))
    tuner, sampler = ScheduleTuner(SPACE, BASELINE, floor, bonus), Sampler(2 * 10**6)
    generator, course = np.random.default_rng(1), []
    for _ in range(batches):
        played = tuner.play(sampler, BATCH, generator)
        mixture = played.mixture
        course.append({
            "value": float(mdp.value(mixture.policy)), "earned": played.earned, "lower": float(mixture.lower),
            "start": int(mixture.start), "rho": float(mixture.rho), "cost": played.cost,
        })  # fmt: skip
    found = tuner.schedule()
    return {
        "bonus": str(bonus), "floor": floor, "batch": BATCH, "lower": found.lower, "schedule": found.settings,
        "judged": judged(mdp, found.settings), "course": course,
    }  # fmt: skip


def judged(mdp: TabularMDP, settings: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A schedule on the measured process, and in real runs on noise that nothing was learned on."""
    names = list(COMPUTED)
    policy = one_hot([[names.index(name) for name in row] for row in settings], len(names))
    sampler, errors, costs, earned = Sampler(JUDGING), [], [], []
    for _ in range(JUDGED):
        _, actions, qualities = _runs(sampler, lambda step, buckets: policy[step, buckets].argmax(-1))
        earned.append(SPACE.rewards(actions, qualities).sum(1))
        costs.append(np.array([*SPACE.costs.values()])[actions].mean())
        errors.append(sampler.rmse())
    total = np.concatenate(earned)
    return {
        "settings": [list(row) for row in settings], "value": float(mdp.value(policy)), "earned": float(total.mean()),
        "standard_error": float(total.std(ddof=1) / math.sqrt(len(total))), "cost": float(np.mean(costs)),
        "rmse": float(np.sqrt(np.mean(np.square(errors)))),
    }  # fmt: skip


def _runs(sampler: Sampler, decide: Callable[[int, Indices], Indices]) -> tuple[Array, Indices, Array]:
    """A batch: changes, settings and qualities (B, H)."""
    changes, actions = [], []

    def choose(step: int, change: ArrayLike) -> Indices:
        changes.append(np.asarray(change, dtype=np.float64))
        actions.append(decide(step, SPACE.buckets(step, change)))
        return actions[-1]

    qualities = sampler(choose, BATCH)
    return np.stack(changes, 1), np.stack(actions, 1), qualities


def _rms(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1).sqrt()
