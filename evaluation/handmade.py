"""The hand-made solvers and schedules that learned tables are held against: ours and diffusers' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..denoisers.protocol import Path
from ..solvers import rules, schedules
from ..solvers.baselines import scheduler_rule
from ..solvers.walk import Rule

Schedule = Callable[[int], Tensor]


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

    def steps(self, calls: int) -> int:
        """The most steps that take at most this many sequential calls."""
        return (calls + self.afs) // self.step_calls


def handmade(path: Path) -> list[HandMade]:
    """Every hand-made solver of a path: our rules (with AFS too where the path is `ve`) and diffusers' schedulers."""
    return [*ours(path), *theirs(path)]


def ours(path: Path) -> list[HandMade]:
    """Our rules; the first orders of iPNDM and DPM-Solver++ are Euler."""
    out = []
    for afs in (False, True) if path == "ve" else (False,):
        tail = " AFS" if afs else ""
        one: dict[str, tuple[str, Rule]] = {"Euler": ("Euler / DDIM", rules.euler(afs))}
        for order in (2, 3, 4):
            one[f"iPNDM-{order}"] = "iPNDM", rules.ipndm(order, "uniform", afs)
            one[f"iPNDM-{order} variable"] = "iPNDM", rules.ipndm(order, "computed", afs)
        two = {"Heun": ("Heun", rules.heun(afs)), "DPM-Solver-2": ("DPM-Solver-2", rules.dpm2(afs=afs))}
        for calls, named in ((1, one), (2, two)):
            for name, (group, rule) in named.items():
                out.append(HandMade(name + tail, group, lambda sigmas, rule=rule: rule, calls, afs))
        for order in (2, 3):
            make = partial(_dpmpp, order, afs)
            out.append(HandMade(f"DPM-Solver++ {order}M{tail}", "DPM-Solver++", make, 1, afs))
    return out


def _dpmpp(order: int, afs: bool, sigmas: Tensor) -> Rule:
    return rules.dpmpp(order, num_steps=len(sigmas) - 1, afs=afs)


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
    ends = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    out: dict[str, Schedule] = {}
    if path == "flow":
        for shift in (0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
            # The shifted ramp must end on sigma_min itself: undo the shift there first.
            low, high = (s / (shift - (shift - 1) * s) for s in (sigma_min, sigma_max))
            out[f"shift {shift:g}"] = partial(_flow, shift=shift, low=low, high=high, **ends)
    else:
        out["time uniform"] = partial(schedules.time_uniform, **ends)
        if alphas_cumprod is not None:
            out["discrete"] = partial(schedules.discrete, alphas_cumprod=alphas_cumprod, **ends)
    for rho in (3.0, 5.0, 7.0, 10.0):
        out[f"polynomial {rho:g}"] = partial(schedules.polynomial, rho=rho, **ends)
    out["log SNR"] = partial(schedules.logsnr, **ends)
    return out


def _flow(num_steps: int, shift: float, low: float, high: float, sigma_min: float, sigma_max: float) -> Tensor:
    sigmas = schedules.flow_shift(num_steps, shift, sigma_min=low, sigma_max=high).clone()
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return torch.as_tensor(sigmas)
