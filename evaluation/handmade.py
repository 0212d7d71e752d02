"""The hand-made solvers and schedules that learned tables are held against: ours and diffusers' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..denoisers.protocol import Path
from ..solvers.baselines import scheduler_rule
from ..solvers.registry import RULES, SCHEDULES, Ends, RuleSettings, make_rule, make_sigmas
from ..solvers.walk import Rule

Schedule = Callable[[int], Tensor]
# Of each schedule that has a number, those that are tried.
TRIED = {"rho": (3.0, 5.0, 7.0, 10.0), "shift": (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)}


@dataclass(frozen=True)
class HandMade:
    """A solver before it has sigmas.

    Args:
        name: unique, for the record.
        group: what the short table calls it, with its variants.
        rule: the rule for given sigmas.
        step_calls: network calls of a step.
        afs: saves the first call.
    """

    name: str
    group: str
    rule: Callable[[Tensor], Rule]
    step_calls: int = 1
    afs: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What it can be asked for by."""
        return self.name, self.group, "hand-made"

    def steps(self, calls: int) -> int:
        """The most steps that take at most this many sequential calls."""
        return (calls + self.afs) // self.step_calls


def handmade(path: Path) -> list[HandMade]:
    """Every hand-made solver of a path: our rules (with AFS too where the path is `ve`) and diffusers' schedulers."""
    return [*ours(path), *theirs(path)]


def ours(path: Path) -> list[HandMade]:
    """Our rules; the first orders of multistep rules are Euler."""
    solvers = []
    for afs in (False, True) if path == "ve" else (False,):
        for name, row in RULES.items():
            for order in row.orders[1:] or (row.order,):
                for uneven in (False, True) if row.uneven else (False,):
                    label = row.label.format(order=order) + " variable" * uneven + " AFS" * afs
                    make = partial(_rule_for, name, RuleSettings(order, None, afs, uneven))
                    solvers.append(HandMade(label, row.group, make, row.step_calls, afs))
    return solvers


def _rule_for(name: str, settings: RuleSettings, sigmas: Tensor) -> Rule:
    return make_rule(name, replace(settings, num_steps=len(sigmas) - 1))


def theirs(path: Path) -> list[HandMade]:
    """Diffusers' schedulers through the adapter, with diffusers' defaults for short schedules."""
    import diffusers as package

    diffusers: Any = package  # its names are made when they are asked for
    flow: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if path == "flow" else {}

    def build(name: str, group: str, cls: Any, calls: int = 1, options: Mapping[str, Any] = {}) -> HandMade:  # noqa: ANN401, B006
        make = partial(cls, **options)
        return HandMade(f"diffusers {name}", group, lambda sigmas: scheduler_rule(make, sigmas, path), calls)

    out = []
    for order in (2, 3):
        end = {"solver_order": order, "final_sigmas_type": "sigma_min", **flow}
        out.append(build(f"DPM++ {order}M", "DPM-Solver++", diffusers.DPMSolverMultistepScheduler, options=end))
        deis = {"solver_order": order, **flow}
        out.append(build(f"DEIS-{order}", "DEIS", diffusers.DEISMultistepScheduler, options=deis))
        for kind in ("bh1", "bh2"):
            options = {"solver_order": order, "solver_type": kind, **flow}
            out.append(build(f"UniPC-{order} {kind}", "UniPC", diffusers.UniPCMultistepScheduler, options=options))
    if path == "flow":
        return [
            build("FlowMatchEuler", "Euler / DDIM", diffusers.FlowMatchEulerDiscreteScheduler),
            build("FlowMatchHeun", "Heun", diffusers.FlowMatchHeunDiscreteScheduler, 2),
            *out,
        ]
    # Its training timesteps play no part, but making it takes a second for 1,000 of them.
    short = {"num_train_timesteps": 32}
    return [
        build("DDIM", "Euler / DDIM", diffusers.DDIMScheduler, options={"clip_sample": False}),
        build("Euler", "Euler / DDIM", diffusers.EulerDiscreteScheduler),
        build("Heun", "Heun", diffusers.HeunDiscreteScheduler, 2),
        build("DPM-Solver-2 (KDPM2)", "DPM-Solver-2", diffusers.KDPM2DiscreteScheduler, 2, short),
        build("iPNDM", "iPNDM", diffusers.IPNDMScheduler),
        *out,
    ]


def candidate_schedules(
    path: Path, sigma_min: float, sigma_max: float, alphas_cumprod: Tensor | None = None
) -> dict[str, Schedule]:
    """Name -> schedule: what each hand-made solver may choose from, cell by cell."""
    ends = Ends(path, sigma_min, sigma_max, alphas_cumprod)
    out: dict[str, Schedule] = {}
    for name, row in SCHEDULES.items():
        if path in row.suits and (alphas_cumprod is not None or not row.timesteps):
            for number in TRIED[row.shape] if row.shape else (row.number,):
                out[row.label.format(number=number)] = partial(make_sigmas, name, ends=ends, number=number)
    return out
