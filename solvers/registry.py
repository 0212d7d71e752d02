"""Every hand-made rule and every schedule by name, one row each: whoever offers a choice of them reads these rows.

They say what each is and load it when it is made, so that the choices are known without waiting for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoisers.protocol import Model, Path
    from .walk import Rule


@dataclass(frozen=True)
class RuleSettings:
    """Settings of a hand-made rule; each rule reads those that apply to it.

    Args:
        order: of a multistep rule; None: the default of its row.
        num_steps: N of the trajectory; rules that lower their order in the last steps need it.
        afs: analytic first slope, one call fewer.
        uneven: multistep weights computed for the grid at hand, not those of equal steps.
    """

    order: int | None = None
    num_steps: int | None = None
    afs: bool = False
    uneven: bool = False


@dataclass(frozen=True)
class RuleRow:
    """One hand-made rule: its names, what it costs, and how it is made.

    Args:
        group: the method, as comparisons show it; `label` its variant, with `{order}`.
        step_calls: sequential network calls of a step.
        make: (the module `rules`, the order, the settings) -> the rule.
        orders: from which one can be chosen; empty: there is no choice.
        order: the default.
        uneven: whether its weights can be computed for uneven grids.
        reaches_zero: whether its last step may end at sigma 0; others ask there, or take its logarithm.
    """

    group: str
    label: str
    step_calls: int
    make: Callable[[Any, int, RuleSettings], Rule]
    orders: tuple[int, ...] = ()
    order: int = 1
    uneven: bool = False
    reaches_zero: bool = False


RULES: Mapping[str, RuleRow] = {
    "euler": RuleRow("Euler / DDIM", "Euler", 1, lambda rules, order, s: rules.euler(s.afs), reaches_zero=True),
    "ipndm": RuleRow(
        "iPNDM", "iPNDM-{order}", 1,
        lambda rules, order, s: rules.ipndm(order, "computed" if s.uneven else "uniform", s.afs),
        orders=(1, 2, 3, 4), order=4, uneven=True, reaches_zero=True,
    ),
    "heun": RuleRow("Heun", "Heun", 2, lambda rules, order, s: rules.heun(s.afs)),
    "dpm2": RuleRow("DPM-Solver-2", "DPM-Solver-2", 2, lambda rules, order, s: rules.dpm2(afs=s.afs)),
    "dpmpp": RuleRow(
        "DPM-Solver++", "DPM-Solver++ {order}M", 1,
        lambda rules, order, s: rules.dpmpp(order, num_steps=s.num_steps, afs=s.afs),
        orders=(1, 2, 3), order=2,
    ),
}  # fmt: skip

SIMPLEST = "euler"  # it asks where it is and nowhere else
MULTISTEP = "dpmpp2"  # second order at one call a step
ADAMS = "ipndm"  # asks at the state and nowhere else: the slopes that it takes are those that Euler would

# `ipndm3` is `ipndm` of order 3: names for options that hold a name alone.
NUMBERED: Mapping[str, tuple[str, int]] = {
    f"{name}{order if row.orders else ''}": (name, order)
    for name, row in RULES.items()
    for order in row.orders or (row.order,)
}


def make_rule(name: str, settings: RuleSettings = RuleSettings()) -> Rule:
    """The rule of this name, such as `ipndm` (of the settings' order) or `ipndm3`.

    Raises:
        ValueError: for an unknown name, or an order that the rule does not have.
    """
    from . import rules

    base, order = (name, None) if name in RULES else NUMBERED.get(name, (name, None))
    if base not in RULES:
        raise ValueError(f"rule = {name!r} is unknown: give one of {', '.join(RULES)}")
    order = settings.order if order is None else order
    return RULES[base].make(rules, RULES[base].order if order is None else order, settings)


def most_accurate(name: str) -> Rule:
    """A rule's variant of the highest order, for any grid: what teaches."""
    row = RULES[name]
    return make_rule(name, RuleSettings(order=max(row.orders, default=row.order), uneven=row.uneven))


@dataclass(frozen=True)
class Ends:
    """The range of noise levels that a schedule covers, and what else it needs of a model.

    Args:
        path: `ve` or `flow`.
        sigma_min, sigma_max: the last sigma and the first, whatever the schedule.
        alphas_cumprod: (T,) of a network that was trained on discrete timesteps.
        owner: the model's name, for error messages.
    """

    path: Path
    sigma_min: float
    sigma_max: float
    alphas_cumprod: Tensor | None = None
    owner: str = "the model"

    @classmethod
    def of(cls, model: Model, sigma_min: float | None = None, sigma_max: float | None = None) -> Ends:
        """A model's own ends, or others in their place."""
        low = model.sigma_min if sigma_min is None else sigma_min
        high = model.sigma_max if sigma_max is None else sigma_max
        return cls(model.path, low, high, model.alphas_cumprod, model.name)


@dataclass(frozen=True)
class ScheduleRow:
    """One schedule: its label, where it applies, and how it is made.

    Args:
        label: as comparisons show it, with `{number}`.
        make: (the module `schedules`, the number of steps, the ends, the number) -> (N+1,) sigmas from end to end.
        suits: the paths on which comparisons try it.
        shape: the option that sets its `number`; None: there is no such option.
        number: the default.
        flow_only: whether it exists on a flow path only.
        timesteps: whether it needs a network that was trained on discrete timesteps.
    """

    label: str
    make: Callable[[Any, int, Ends, float], Tensor]
    suits: tuple[Path, ...] = ("ve", "flow")
    shape: Literal["rho", "shift"] | None = None
    number: float = 1.0
    flow_only: bool = False
    timesteps: bool = False


SCHEDULES: Mapping[str, ScheduleRow] = {
    "flow": ScheduleRow(
        "shift {number:g}", lambda schedules, n, e, shift: schedules.flow_between(n, e.sigma_min, e.sigma_max, shift),
        suits=("flow",), shape="shift", flow_only=True,
    ),
    "time_uniform": ScheduleRow(
        "time uniform", lambda schedules, n, e, rho: schedules.time_uniform(n, e.sigma_min, e.sigma_max, rho),
        suits=("ve",),
    ),
    "discrete": ScheduleRow(
        "discrete",
        lambda schedules, n, e, rho: schedules.discrete(n, e.alphas_cumprod, e.sigma_min, e.sigma_max, rho),
        suits=("ve",), timesteps=True,
    ),
    "polynomial": ScheduleRow(
        "polynomial {number:g}", lambda schedules, n, e, rho: schedules.polynomial(n, e.sigma_min, e.sigma_max, rho),
        shape="rho", number=7.0,
    ),
    "logsnr": ScheduleRow("log SNR", lambda schedules, n, e, _: schedules.logsnr(n, e.sigma_min, e.sigma_max)),
}  # fmt: skip


def make_sigmas(name: str, num_steps: int, ends: Ends, number: float | None = None) -> Tensor:
    """(N+1,) float64 noise levels of the schedule of this name, from `ends.sigma_max` to `ends.sigma_min` exactly.

    Args:
        number: the schedule's own, such as rho or a shift; None: the default of its row.

    Raises:
        ValueError: for an unknown name, or a schedule that the model cannot have.
    """
    from . import schedules

    if name not in SCHEDULES:
        raise ValueError(f"schedule = {name!r} is unknown: give one of {', '.join(SCHEDULES)}")
    row = SCHEDULES[name]
    if row.flow_only and ends.path != "flow":
        raise ValueError(f"schedule = {name!r} needs a flow path, {ends.owner} is {ends.path}: use {USUAL['ve']!r}")
    if row.timesteps and ends.alphas_cumprod is None:
        raise ValueError(f"schedule = {name!r} needs training timesteps, {ends.owner} has none: use {USUAL['ve']!r}")
    return row.make(schedules, num_steps, ends, row.number if number is None else number)


# The default of each path.
USUAL: Mapping[Path, str] = {"ve": "polynomial", "flow": "flow"}

# What published files call theirs: ours between the same ends, and a flow's, whose ends are those before its shift.
SHIFTED = "flowmatch"
PUBLISHED_SCHEDULES = (*(name for name, row in SCHEDULES.items() if not row.flow_only), SHIFTED)

if TYPE_CHECKING:
    NumberedRule: TypeAlias = str
    PublishedSchedule: TypeAlias = str
    Teacher: TypeAlias = str
    Schedule: TypeAlias = str
else:  # the choices of options and configs
    NumberedRule = Literal[tuple(NUMBERED)]
    Teacher = Literal[("exact", *RULES)]
    Schedule = Literal[tuple(SCHEDULES)]
    PublishedSchedule = Literal[PUBLISHED_SCHEDULES]
