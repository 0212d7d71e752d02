"""What stands for `torch.compile(mode="reduce-overhead")`: results that the next call overwrites, and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.toy_models import toy_mixture
from torch import Tensor, fx

import epd
from epd.denoisers.noise import unit_noise
from epd.solvers.replay import Replays

LEVELS = torch.tensor([20.0, 5.0, 1.0, 0.1], dtype=torch.float64)


def overwriting(graph: fx.GraphModule, example: Sequence[Tensor]) -> Callable[..., Any]:
    """As inductor's graphs do, it returns the same memory at every call."""
    kept: list[Any] = []

    def call(*inputs: Tensor) -> Any:  # noqa: ANN401
        outputs = graph(*inputs)
        if not kept:
            kept.extend(out.clone() if isinstance(out, Tensor) else out for out in outputs)
        for static, out in zip(kept, outputs, strict=True):
            if isinstance(static, Tensor):
                static.copy_(out)
        return tuple(kept)

    return call


def test_results_stay_where_the_next_call_overwrites_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(None))
    replays = Replays("f", lambda x: (torch.sin(x) + 1, x.sum()), make_graph=lambda: epd.CompiledGraph(overwriting))
    first, second = torch.arange(6.0), torch.arange(6.0) * 2
    with torch.no_grad():
        one = replays(first)
        two = replays(second)
    for x, (sine, total) in ((first, one), (second, two)):
        torch.testing.assert_close(sine, torch.sin(x) + 1)
        torch.testing.assert_close(total, x.sum())
    assert replays.kept == 1 and len(steps) == 3 + 2  # two to warm up, one that is recorded; a replay each


@pytest.mark.parametrize("whole", [True, False])
def test_a_captured_trajectory_is_that_of_solve(whole: bool) -> None:
    model, rule = toy_mixture(), epd.rules.ipndm(2)
    noise = unit_noise(range(3), model.shape, torch.float64)
    captured = epd.capture(
        rule, model, tuple(noise.shape), torch.float64, LEVELS, whole, device="cpu",
        make_graph=lambda: epd.CompiledGraph(overwriting),
    )  # fmt: skip
    with torch.no_grad():
        for x in (noise, noise.flip(0)):
            torch.testing.assert_close(captured(x), epd.solve(rule, model, x, LEVELS), rtol=1e-12, atol=1e-12)
    assert captured.replays.kept == 1
