"""Any diffusers scheduler as a Rule, on exactly our sigmas: the baselines are theirs, not our rewriting of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..denoisers.protocol import Path
from .schedules import checked_sigmas
from .walk import Ask, History, Rule, Steps

StateFrame = Literal["ve", "vp", "flow"]
Make = Callable[[], object]  # returns a SchedulerMixin, whose subclasses share no typed attributes
# What a scheduler gets instead of sigma 1 on a flow path, where its log(1 - sigma) is infinite; as diffusers does.
LARGEST_FLOW_SIGMA = 1 - 1e-6


@dataclass(frozen=True)
class Kind:
    """How one scheduler class takes noise levels and model outputs.

    Args:
        frame: of its samples: `ve` x0 + sigma eps, `vp` that over sqrt(1 + sigma^2), `flow` (1 - sigma) x0 + sigma eps.
        arm: gives it the sigmas, after its own `set_timesteps`.
        second: position of a second network call, at sigma'^second sigma^(1-second); None: one call a step.
        output: the kind of model output that it takes, where its config does not say.
    """

    frame: StateFrame
    arm: Callable[[Any, Tensor], None]
    second: float | None = None
    output: str | None = None


def _arm_plain(scheduler: Any, sigmas: Tensor) -> None:  # noqa: ANN401 - schedulers share no typed attributes
    _count(scheduler, len(sigmas) - 1, len(sigmas) - 1)
    scheduler.sigmas = sigmas


def _arm_log_alpha(scheduler: Any, sigmas: Tensor) -> None:  # noqa: ANN401
    flow = bool(scheduler.config["use_flow_sigmas"])
    _arm_plain(scheduler, sigmas.clamp(max=LARGEST_FLOW_SIGMA) if flow else sigmas)


def _arm_twice(scheduler: Any, sigmas: Tensor) -> None:  # noqa: ANN401
    _count(scheduler, len(sigmas) - 1, 2 * (len(sigmas) - 1))
    scheduler.sigmas = torch.stack([sigmas[:-1], sigmas[1:]], 1).flatten()


def _arm_middle(scheduler: Any, sigmas: Tensor) -> None:  # noqa: ANN401
    _arm_twice(scheduler, sigmas)
    scheduler.sigmas_interpol = (sigmas[:-1] * sigmas[1:]).sqrt().repeat_interleave(2)


def _arm_ipndm(scheduler: Any, sigmas: Tensor) -> None:  # noqa: ANN401
    _count(scheduler, len(sigmas) - 1, len(sigmas) - 1)
    scheduler.alphas = 1 / (1 + sigmas**2).sqrt()
    scheduler.betas = sigmas * scheduler.alphas  # its name for the noise level of the vp frame


def _arm_ddim(scheduler: Any, sigmas: Tensor) -> None:  # noqa: ANN401
    """DDIM steps by a fixed stride through training timesteps: each stride becomes one of our sigmas."""
    num_steps = len(sigmas) - 1
    scheduler.set_timesteps(num_steps)
    stride = scheduler.config["num_train_timesteps"] // num_steps
    scheduler.timesteps = torch.arange(num_steps - 1, -1, -1) * stride
    scheduler.alphas_cumprod = (1 / (1 + sigmas[:-1] ** 2)).flip(0).repeat_interleave(stride)
    scheduler.final_alpha_cumprod = 1 / (1 + sigmas[-1] ** 2)


def _count(scheduler: Any, num_steps: int, entries: int) -> None:  # noqa: ANN401
    scheduler.set_timesteps(num_steps)
    # Any distinct numbers will do, floating ones for those that refuse integers: no network of theirs ever sees them.
    scheduler.timesteps = torch.arange(entries, 0, -1, dtype=torch.float64)
    scheduler.set_begin_index(0)


KINDS: dict[str, Kind] = {
    "DDIMScheduler": Kind("vp", _arm_ddim),
    "DEISMultistepScheduler": Kind("vp", _arm_log_alpha),
    "DPMSolverMultistepScheduler": Kind("vp", _arm_log_alpha),
    "UniPCMultistepScheduler": Kind("vp", _arm_log_alpha),
    "IPNDMScheduler": Kind("vp", _arm_ipndm, output="v_prediction"),
    "EulerDiscreteScheduler": Kind("ve", _arm_plain),
    "LMSDiscreteScheduler": Kind("ve", _arm_plain),
    "HeunDiscreteScheduler": Kind("ve", _arm_twice, second=1.0),
    "KDPM2DiscreteScheduler": Kind("ve", _arm_middle, second=0.5),
    "FlowMatchEulerDiscreteScheduler": Kind("flow", _arm_plain, output="flow_prediction"),
    "FlowMatchHeunDiscreteScheduler": Kind("flow", _arm_twice, second=1.0, output="flow_prediction"),
}


def scheduler_rule(make: Make, sigmas: Tensor | Sequence[float], path: Path = "ve") -> Rule:
    r"""A diffusers scheduler as a rule: mean slope = (what its `step` makes of x - x) / (sigma' - sigma).

    Each solve gets a new scheduler. It sees x in its own frame (x / sqrt(1 + sigma^2) where it is variance preserving)
    and, as model output, what a network of its `prediction_type` would say: eps = slope, x0 = x - sigma slope,
    v = (slope - sigma x0) / sqrt(1 + sigma^2), flow = slope. Our sigmas replace its own in float64, so a float64 state
    stays one, except in DPMSolverMultistep, EulerDiscrete and FlowMatch, whose `step` rounds the sample to float32
    (relative 6e-8 a step).

    Args:
        make: returns a fresh scheduler, e.g. `lambda: UniPCMultistepScheduler(solver_order=3)`.
        sigmas: (N+1,), decreasing: those that the rule will be driven with.
        path: `ve`, or `flow` for FlowMatch schedulers and those with use_flow_sigmas=True.

    Raises:
        ValueError: for a class that is not in `KINDS`, a scheduler of the other path, one that clips samples, or other
            sigmas than it is then driven with.
    """
    levels = checked_sigmas(sigmas).detach().cpu()
    kind, frame, output = _introduce(make(), levels, path)

    def rule(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        if n + 1 >= len(levels) or float(sigma) != float(levels[n]) or float(sigma_next) != float(levels[n + 1]):
            raise ValueError(
                f"step {n} from sigma {float(sigma)} to {float(sigma_next)} is not on the sigmas that this scheduler "
                "was given: make the rule with the sigmas that it is driven with"
            )
        scheduler: Any = history[0] if n else make()
        if n == 0:
            kind.arm(scheduler, levels)
        # Where each call of this step looks, and where its result lies; the two differ on the last one only.
        marks = _marks(levels[n], levels[n + 1], kind.second)
        point = x
        for call, (mark, result) in enumerate(zip(marks, [*marks[1:], levels[n + 1]], strict=True)):
            slope = (yield Ask(point[None], mark.to(sigma.device)[None]))[0]
            timestep = scheduler.timesteps[n * len(marks) + call]
            sample = point * _scale(frame, mark)
            if frame == "ve":
                scheduler.scale_model_input(sample, timestep)  # these complain when it was not called
            said = _model_output(output, point, slope, mark)
            point = scheduler.step(said, timestep, sample, return_dict=False)[0] / _scale(frame, result)
        return (point - x) / (levels[n + 1] - levels[n]), (scheduler,)

    return rule


def _introduce(scheduler: Any, levels: Tensor, path: Path) -> tuple[Kind, StateFrame, str]:  # noqa: ANN401
    """Kind, frame and model output of a scheduler, checked against what it will be used for."""
    name = type(scheduler).__name__
    if name not in KINDS:
        raise ValueError(f"no adapter for {name}: there is one for {', '.join(KINDS)}")
    kind, config = KINDS[name], scheduler.config
    frame: StateFrame = "flow" if config.get("use_flow_sigmas") else kind.frame
    if (frame == "flow") != (path == "flow"):
        raise ValueError(
            f"{name} works in the {frame} frame, the path is {path!r}: on a flow path use a FlowMatch "
            "scheduler, or use_flow_sigmas=True with prediction_type='flow_prediction'"
        )
    if config.get("clip_sample") or config.get("thresholding"):
        raise ValueError(
            f"{name} clips samples to a range, no solver of the same ODE: give clip_sample=False and thresholding=False"
        )
    if kind.second is not None and not float(levels[-1]) > 0:
        raise ValueError(f"sigmas[{len(levels) - 1}] = 0: {name} evaluates the network there; end above 0")
    return kind, frame, kind.output or config["prediction_type"]


def _marks(sigma: Tensor, sigma_next: Tensor, second: float | None) -> list[Tensor]:
    """Where the network calls of a step are."""
    return [sigma] if second is None else [sigma, sigma_next**second * sigma ** (1 - second)]


def _scale(frame: StateFrame, sigma: Tensor) -> Tensor:
    """Our state times this is the scheduler's sample."""
    return (1 + sigma**2).rsqrt() if frame == "vp" else torch.ones_like(sigma)


def _model_output(output: str, x: Tensor, slope: Tensor, sigma: Tensor) -> Tensor:
    if output in ("epsilon", "flow_prediction"):
        return slope
    x0 = x - sigma * slope
    return x0 if output == "sample" else (slope - sigma * x0) * (1 + sigma**2).rsqrt()
