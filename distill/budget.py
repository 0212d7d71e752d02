"""A plan fitted to a time: how many updates, from what the first ones take on this machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .plan import Plan, parts_at

if TYPE_CHECKING:
    from .cost import Cost

log = logging.getLogger("epd")
AIM = 0.95  # of the time: what is measured on two updates is not exact
MOST_UPDATES = 10**6
POOR = 0.2  # share of the updates that a plan has by itself, below which a person should know


@dataclass(frozen=True)
class Speed:
    """What a run's work takes, in seconds: one part of an update, and one measurement on held-out noise."""

    part: float
    measurement: float

    def seconds(self, plan: Plan) -> float:
        """What all updates of a plan take."""
        measurements = plan.total // plan.config.validate_every + 2 * len(plan.tables)
        return self.part * sum(parts_at(plan, n) for n in range(plan.total)) + self.measurement * measurements


def scaled(plan: Plan, share: float) -> Plan:
    """The plan with this share of its updates, screening and training alike."""
    screening = max(1, round(share * plan.config.screening))
    return decided(plan, screening, max(1, round(share * plan.iterations)))


def decided(plan: Plan, screening: int, iterations: int) -> Plan:
    """The plan with these lengths: what a config without `minutes` and with these numbers means."""
    lengths = {"screening": screening, "iterations": iterations, "minutes": None}
    return replace(plan, config=plan.config.model_copy(update=lengths), iterations=iterations)


def fitted(plan: Plan, seconds: float, speed: Speed) -> Plan:
    """The longest plan that takes at most this long; at the least, one update of each kind.

    The optimiser's schedule follows from the plan's lengths, so it fits the time, too.
    """
    low, high = 0.0, 1.0
    while speed.seconds(scaled(plan, high)) <= AIM * seconds and high * plan.total < MOST_UPDATES:
        low, high = high, 2 * high
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if speed.seconds(scaled(plan, middle)) <= AIM * seconds else (low, middle)
    plan_that_fits = scaled(plan, low)
    log.info("%d updates fit into the %.0f s that are left", plan_that_fits.total, max(seconds, 0))
    if plan_that_fits.total < POOR * plan.total:
        log.warning(
            "minutes leave time for %d updates, usual are %d: expect a poor table; give more, or a smaller pool",
            plan_that_fits.total, plan.total,
        )  # fmt: skip
    return plan_that_fits


def foreseen(plan: Plan, cost: Cost) -> Plan:
    """What `fitted` is likely to make of a plan, from its estimated cost."""
    training = cost.seconds * cost.training_evaluations / (cost.training_evaluations + cost.teacher_evaluations)
    parts = sum(parts_at(plan, n) for n in range(plan.total))
    return fitted(plan, 60 * (plan.config.minutes or 0) - (cost.seconds - training), Speed(training / parts, 0.0))
