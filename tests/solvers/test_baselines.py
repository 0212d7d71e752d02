"""Diffusers' schedulers behind the adapter: golden values, parity with our rules, orders, recorded calls."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import diffusers as diffusers_package
import numpy as np
import pytest
import torch
from helpers import golden
from helpers.golden import Case
from torch import Tensor

import epd
from epd.denoisers.protocol import Path
from epd.solvers.baselines import KINDS, Make, scheduler_rule
from epd.solvers.exact import converged

diffusers = cast(Any, diffusers_package)  # type checkers see no names in it: it makes them when they are asked for
# KDPM2 wraps a tensor in numpy in a way that numpy 2 calls old; the warning is raised in numpy's own module.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
UNIPC = [c for c in golden.cases() if c.solver == "unipc"]
MIXTURE = golden.mixture()
NET = epd.GaussianMixture(torch.tensor(MIXTURE["mu"]), torch.tensor(MIXTURE["s"]), torch.tensor(MIXTURE["w"]))
NOISE = torch.tensor(golden.noise())
SIGMAS = epd.schedules.polynomial(6)
SHIFTED = epd.schedules.flow_shift(6, shift=2.0, sigma_min=0.02)
ROUNDS = 3e-6  # what is left of float64 where a scheduler's step rounds its sample to float32
EXACT = 1e-8


def flow_net() -> epd.GaussianMixture:
    m = MIXTURE
    return epd.GaussianMixture(torch.tensor(m["mu"]), torch.tensor(m["s"]), torch.tensor(m["w"]), path="flow")


def states(rule: epd.Rule, net: epd.Denoiser, noise: Tensor, sigmas: Tensor) -> Tensor:
    return torch.stack(list(epd.trajectory(rule, net, noise, sigmas)))


def unipc(case: Case) -> Make:
    return lambda: diffusers.UniPCMultistepScheduler(
        solver_order=case.order or 1,
        solver_type=case.options["variant"],
        predict_x0=case.options["predict_x0"],
    )


def test_all_golden_unipc_cases_are_here() -> None:
    assert len(UNIPC) == 60 and {c.net for c in UNIPC} == {"edm", "sd15_uncond"}
    kinds = {(c.order, c.options["variant"], c.options["predict_x0"]) for c in UNIPC}
    assert kinds == {(1, "bh2", True), (2, "bh2", True), (3, "bh1", True), (3, "bh2", True), (3, "bh2", False)}


@pytest.mark.parametrize("case", UNIPC, ids=lambda c: c.id)
def test_unipc_is_golden(case: Case) -> None:
    """The end, and every corrected state: diffusers corrects a state one step later, when its slope is known."""
    made: list[Any] = []

    def make() -> Any:  # noqa: ANN401 - the scheduler is looked into
        made.append(unipc(case)())
        return made[-1]

    sigmas, noise = torch.tensor(case.sigmas), torch.tensor(case.noise)
    rule = scheduler_rule(make, sigmas)
    x = noise
    for n, x in enumerate(epd.trajectory(rule, NET, noise, sigmas)):  # noqa: B007 - the last one is looked at
        if n > 1:
            corrected = made[-1].last_sample[0] * (1 + sigmas[n - 1] ** 2).sqrt()
            np.testing.assert_allclose(corrected.numpy(), case.states[n - 1], rtol=0, atol=EXACT)
    np.testing.assert_allclose(x[0].numpy(), case.states[-1], rtol=0, atol=EXACT)


def dpm(order: int, algorithm: str = "dpmsolver++", **flow: Any) -> Make:  # noqa: ANN401 - their keyword arguments
    return lambda: diffusers.DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type=algorithm, final_sigmas_type="sigma_min", **flow
    )


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
PARITY: dict[str, tuple[Make, epd.Rule, float]] = {
    "euler": (diffusers.EulerDiscreteScheduler, epd.rules.euler(), ROUNDS),
    "ddim": (lambda: diffusers.DDIMScheduler(clip_sample=False), epd.rules.euler(), EXACT),
    "heun": (diffusers.HeunDiscreteScheduler, epd.rules.heun(), EXACT),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, epd.rules.dpm2(0.5), EXACT),
    "ipndm": (diffusers.IPNDMScheduler, epd.rules.ipndm(4), EXACT),
    "lms": (diffusers.LMSDiscreteScheduler, epd.rules.ipndm(4, "computed"), EXACT),
    "deis1": (lambda: diffusers.DEISMultistepScheduler(solver_order=1), epd.rules.euler(), EXACT),
    "unip1": (
        lambda: diffusers.UniPCMultistepScheduler(solver_order=1, disable_corrector=[*range(9)]),
        epd.rules.euler(),
        EXACT,
    ),
    **{f"dpmpp{p}": (dpm(p), epd.rules.dpmpp(p, num_steps=6), ROUNDS) for p in (1, 2, 3)},
    # Third order: what diffusers calls `dpmsolver` has another sign there than the formula for slopes.
    **{f"dpm{p}": (dpm(p, "dpmsolver"), epd.rules.dpmpp(p, False, 6), ROUNDS) for p in (1, 2)},
}
FLOW_PARITY: dict[str, tuple[Make, epd.Rule, float]] = {
    "euler": (diffusers.FlowMatchEulerDiscreteScheduler, epd.rules.euler(), ROUNDS),
    "heun": (diffusers.FlowMatchHeunDiscreteScheduler, epd.rules.heun(), ROUNDS),
    "deis1": (lambda: diffusers.DEISMultistepScheduler(solver_order=1, **FLOW), epd.rules.euler(), EXACT),
    "unip1": (
        lambda: diffusers.UniPCMultistepScheduler(solver_order=1, disable_corrector=[*range(9)], **FLOW),
        epd.rules.euler(),
        EXACT,
    ),
    "dpmpp1": (dpm(1, **FLOW), epd.rules.euler(), ROUNDS),
}


@pytest.mark.parametrize("name", PARITY)
def test_theirs_equal_ours(name: str) -> None:
    make, ours, tolerance = PARITY[name]
    theirs = states(scheduler_rule(make, SIGMAS), NET, NOISE, SIGMAS)
    # Relative to sigma where it is large: float32 keeps seven digits of the state, whatever its size.
    scale = (1 + SIGMAS**2).sqrt().reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(theirs / scale, states(ours, NET, NOISE, SIGMAS) / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FLOW_PARITY)
def test_theirs_equal_ours_on_a_flow_path(name: str) -> None:
    make, ours, tolerance = FLOW_PARITY[name]
    theirs = states(scheduler_rule(make, SHIFTED, "flow"), flow_net(), NOISE, SHIFTED)
    # Schedulers that work in log alpha start at sigma 1 - 1e-6 instead of 1.
    torch.testing.assert_close(theirs, states(ours, flow_net(), NOISE, SHIFTED), rtol=0, atol=max(tolerance, 1e-5))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type_says_the_same(prediction: Any) -> None:  # noqa: ANN401 - a literal of theirs
    def make() -> Any:  # noqa: ANN401
        return diffusers.UniPCMultistepScheduler(prediction_type=prediction)

    plain = scheduler_rule(diffusers.UniPCMultistepScheduler, SIGMAS)
    found = states(scheduler_rule(make, SIGMAS), NET, NOISE, SIGMAS)
    torch.testing.assert_close(found, states(plain, NET, NOISE, SIGMAS), rtol=0, atol=1e-9)


def unipc_of(order: int, solver: Any, **flow: Any) -> Make:  # noqa: ANN401
    return lambda: diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type=solver, lower_order_final=False, **flow
    )


def deis_of(order: int, **flow: Any) -> Make:  # noqa: ANN401
    return lambda: diffusers.DEISMultistepScheduler(solver_order=order, lower_order_final=False, **flow)


# A UniPC of order p has order p + 1 with its corrector; its first step, of order 1 corrected, caps it at 3.
ORDERS: dict[str, tuple[Callable[..., Make], float]] = {
    **{f"deis{p}": (lambda p=p, **flow: deis_of(p, **flow), min(p, 2)) for p in (1, 2, 3)},
    **{
        f"unipc{p}-{kind}": (lambda p=p, kind=kind, **flow: unipc_of(p, kind, **flow), min(p + 1, 3))
        for p in (1, 2, 3)
        for kind in ("bh1", "bh2")
    },
}
ENDS: dict[Path, tuple[float, float]] = {"ve": (3.0, 1.5), "flow": (0.8, 0.35)}


@functools.cache
def smooth(path: Path) -> tuple[epd.GaussianMixture, Tensor, Tensor]:
    """A nonlinear flow of wide components, start noise, and where it ends."""
    means = torch.tensor([[1.3, -0.6], [-0.8, 1.1], [0.4, 0.9]])
    net = epd.GaussianMixture(means, [0.7, 0.9, 0.6], [0.5, 0.3, 0.2], path=path)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return net, noise, converged(net, noise, ENDS[path], 1e-12, 1e-12)[-1]


@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("name", ORDERS)
def test_orders(name: str, path: Path) -> None:
    net, noise, end = smooth(path)
    make, order = ORDERS[name]
    errors, counts = [], (48, 96, 192)
    for n in counts:
        sigmas = epd.schedules.logsnr(n, ENDS[path][1], ENDS[path][0])
        rule = scheduler_rule(make(**FLOW) if path == "flow" else make(), sigmas, path)
        errors.append(float((epd.solve(rule, net, noise, sigmas) - end).square().mean().sqrt()))
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15)


CALLS = {"HeunDiscreteScheduler": 2, "KDPM2DiscreteScheduler": 2, "FlowMatchHeunDiscreteScheduler": 2}


@pytest.mark.parametrize("name", KINDS)
def test_calls_are_where_they_should_be(name: str) -> None:
    """One or two calls a step, at sigma and at sigma' (KDPM2: at their geometric middle); never twice at one place."""
    flow = name.startswith("FlowMatch")
    sigmas = SHIFTED if flow else SIGMAS
    told: list[float] = []

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        told.append(float(sigma[0]))
        return (flow_net() if flow else NET)(x, sigma)

    options = {"clip_sample": False} if name == "DDIMScheduler" else {}
    rule = scheduler_rule(lambda: getattr(diffusers, name)(**options), sigmas, "flow" if flow else "ve")
    assert bool(epd.solve(rule, net, NOISE[:1], sigmas).isfinite().all())
    levels = sigmas.tolist()
    second = {1: [], 2: levels[1:]}[CALLS.get(name, 1)]
    if name == "KDPM2DiscreteScheduler":
        second = [math.sqrt(a * b) for a, b in pairwise(levels)]
    pairs = [list(step) for step in zip(levels[:-1], second, strict=True)] if second else [[s] for s in levels[:-1]]
    assert told == pytest.approx([s for step in pairs for s in step], rel=1e-14)


def test_a_rule_can_be_solved_again_and_in_any_dtype() -> None:
    rule = scheduler_rule(diffusers.UniPCMultistepScheduler, SIGMAS)
    first = epd.solve(rule, NET, NOISE, SIGMAS)
    assert torch.equal(first, epd.solve(rule, NET, NOISE, SIGMAS))
    single = epd.solve(rule, NET, NOISE.float(), SIGMAS)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), first, rtol=0, atol=1e-4)
    assert [len(step) for step in epd.plan(rule, SIGMAS)] == [1] * 6


REFUSED: dict[str, tuple[Make, Tensor, Path, str]] = {
    "class": (diffusers.DDPMScheduler, SIGMAS, "ve", "no adapter for DDPMScheduler"),
    "path": (diffusers.EulerDiscreteScheduler, SHIFTED, "flow", "use a FlowMatch scheduler"),
    "flow on ve": (diffusers.FlowMatchEulerDiscreteScheduler, SIGMAS, "ve", "the path is 've'"),
    "clip": (diffusers.DDIMScheduler, SIGMAS, "ve", "clip_sample=False"),
    "end": (diffusers.HeunDiscreteScheduler, torch.tensor([2.0, 1.0, 0.0]), "ve", "end above 0"),
    "rise": (diffusers.EulerDiscreteScheduler, torch.tensor([1.0, 2.0]), "ve", "must decrease"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    make, sigmas, path, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        scheduler_rule(make, sigmas, path)


def test_other_sigmas_are_refused() -> None:
    rule = scheduler_rule(diffusers.EulerDiscreteScheduler, SIGMAS)
    with pytest.raises(ValueError, match="is not on the sigmas"):
        epd.solve(rule, NET, NOISE, epd.schedules.polynomial(7))
