"""Diffusers' schedulers behind the adapter: golden values, parity with our rules, orders, recorded calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import diffusers
import golden
import numpy as np
import pytest
import torch
from golden import Case
from torch import Tensor

import epd
from epd.solvers.baselines import KINDS, Make, scheduler_rule
from epd.solvers.exact import converged

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
    assert {(c.order, c.options["variant"], c.options["predict_x0"]) for c in UNIPC} >= {
        (order, variant, x0) for order in (1, 2, 3) for variant in ("bh1", "bh2") for x0 in (True, False)
    }


@pytest.mark.parametrize("case", UNIPC, ids=lambda c: c.id)
def test_unipc_is_golden(case: Case) -> None:
    sigmas, noise = torch.tensor(case.sigmas), torch.tensor(case.noise)
    found = states(scheduler_rule(unipc(case), sigmas), NET, noise, sigmas)[:, 0]
    np.testing.assert_allclose(found.numpy(), case.states, rtol=0, atol=EXACT)
