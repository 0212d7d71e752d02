"""Captured trajectories, through a graph that runs again into the same tensors: buffers, copies, shapes, fallbacks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.recording import Recorder, elementwise, normal
from helpers.tables import FAMILIES, SIGMAS
from torch import Tensor

import epd
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.preconditioning import edm
from epd.solvers.capture import Captured, capture
from epd.solvers.graphs import EagerGraph
from epd.solvers.replay import Replays

rules = epd.rules
RULES: dict[str, Callable[[], epd.Rule]] = {
    "heun": rules.heun,
    "ipndm": rules.ipndm,
    "ipndm, computed": lambda: rules.ipndm(4, "computed"),
    "dpmpp": lambda: rules.dpmpp(3, num_steps=4),
    **{name: functools.partial(table.rule) for name, table in FAMILIES.items()},
}
NOISE = normal(5, 2, 3).float()


def captured(rule: epd.Rule, denoiser: Any = elementwise, **options: Any) -> Captured:  # noqa: ANN401
    shape = options.pop("shape", NOISE.shape)
    options = {"device": "cpu", "make_graph": EagerGraph} | options
    return capture(rule, denoiser, shape, torch.float32, SIGMAS, **options)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_replays_are_solve_bit_for_bit(name: str, whole: bool) -> None:
    run = captured(RULES[name](), whole=whole)
    with torch.no_grad():
        for noise in (NOISE, NOISE.flip(0), NOISE):
            assert torch.equal(run(noise), epd.solve(RULES[name](), elementwise, noise, SIGMAS))
    assert run.replays.kept == 1


def test_one_graph_for_each_step_or_one_for_all() -> None:
    for whole, count in ((False, 4), (True, 1)):
        made: list[EagerGraph] = []

        def make(made: list[EagerGraph] = made) -> EagerGraph:
            made.append(EagerGraph())
            return made[-1]

        captured(rules.heun(), whole=whole, make_graph=make)
        assert len(made) == count


@pytest.mark.parametrize("whole", [False, True])
def test_shapes_are_recorded_when_they_come_and_the_oldest_goes(whole: bool) -> None:
    recorder = Recorder()
    run = captured(rules.euler(), recorder, whole=whole, most=2)
    with torch.no_grad():
        for rows, recorded in [(5, False), (3, True), (5, False), (2, True), (5, False), (3, True), (2, True)]:
            recorder.calls.clear()
            assert torch.equal(run(NOISE[:rows]), epd.solve(rules.euler(), elementwise, NOISE[:rows], SIGMAS))
            assert (len(recorder.calls) > 4) == recorded, rows  # a replay alone makes one call a step
            assert run.replays.kept <= 2
        double = NOISE.double()
        assert torch.equal(run(double), epd.solve(rules.euler(), elementwise, double, SIGMAS))


def test_what_is_returned_is_the_callers() -> None:
    run = captured(FAMILIES["anchor and memory"].rule())
    given = NOISE.clone()
    with torch.no_grad():
        first = run(given)
        expected = first.clone()
        second = run(NOISE.flip(0))
        assert torch.equal(first, expected)  # the next replay wrote elsewhere
        first.zero_()
        second.fill_(torch.nan)
        given.zero_()  # nor is the noise that was given one of its own tensors
        assert torch.equal(run(NOISE), expected)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("whole", [False, True])
def test_conditions_are_copied_in(whole: bool, guidance: float) -> None:
    def network(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        return torch.sin(x + timestep[:, None, None]) * rows["class_labels"][:, None, None]

    null = {"class_labels": torch.tensor([0.5])}
    model = NetworkDenoiser(network, edm(), (2, 3), 0.1, 40.0, null=null)
    rule, one, other = FAMILIES["mixed calls"].rule(), normal(5, seed=1).float(), normal(5, seed=2).float()
    run = captured(
        rule, lambda c: model.bind(c, guidance), conditions={"class_labels": torch.ones(5)}, whole=whole
    )  # fmt: skip
    with torch.no_grad():
        for labels in (one, other, one):
            expected = epd.solve(rule, model.bind(labels, guidance), NOISE, SIGMAS)
            assert torch.equal(run(NOISE, {"class_labels": labels}), expected)
    assert run.replays.kept == 1
    for part in (1, 2):  # weights that change in place are seen, too
        null["class_labels"].fill_(part)
        with torch.no_grad():
            expected = epd.solve(rule, model.bind(one, guidance), NOISE, SIGMAS)
            assert torch.equal(run(NOISE, {"class_labels": one}), expected)


def reads_back(x: Tensor, sigma: Tensor) -> Tensor:
    return elementwise(x, sigma) * (1 if x.sum().item() > 0 else -1)


def picks(x: Tensor, sigma: Tensor) -> Tensor:
    return elementwise(x, sigma) + x[x > 0].sum()


@pytest.mark.parametrize(
    ("denoiser", "operation"), [(reads_back, "_local_scalar_dense"), (picks, "aten.index.Tensor")]
)
def test_what_no_graph_can_hold_runs_as_it_is(
    denoiser: epd.Denoiser, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = captured(rules.heun(), denoiser)
    with torch.no_grad():
        for rows in (5, 5, 4, 5):
            assert torch.equal(run(NOISE[:rows]), epd.solve(rules.heun(), denoiser, NOISE[:rows], SIGMAS))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and run.replays.kept == 0
    assert operation in record.getMessage()
    assert "(test_capture.py, line" in record.getMessage() and "return elementwise(x, sigma)" in record.getMessage()


def test_a_processor_has_no_graphs_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    run = captured(rules.heun(), make_graph=None)
    with torch.no_grad():
        assert torch.equal(run(NOISE), epd.solve(rules.heun(), elementwise, NOISE, SIGMAS))
    assert [r.getMessage() for r in caplog.records] == [
        "the solver is not replayed from graphs: the tensors lie on cpu, and graphs are those of a CUDA device"
    ]


def test_gradients_are_kept_by_not_replaying(caplog: pytest.LogCaptureFixture) -> None:
    noise = NOISE.clone().requires_grad_()
    captured(rules.heun())(noise).sum().backward()
    assert noise.grad is not None and "gradients are enabled" in caplog.text


def test_errors_of_the_denoiser_are_the_callers() -> None:
    with pytest.raises(ValueError, match="returned shape"):
        captured(rules.heun(), lambda x, sigma: x[:1])
    with pytest.raises(ValueError, match="most = 0: at least 1"):
        captured(rules.heun(), most=0)


def test_inference_mode_and_no_grad_take_turns() -> None:
    run, expected = captured(rules.heun()), epd.solve(rules.heun(), elementwise, NOISE, SIGMAS)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(run(NOISE), expected)


def test_any_arguments_are_part_of_a_recording(caplog: pytest.LogCaptureFixture) -> None:
    """Tensors at any depth are copied, all else tells recordings apart."""
    calls: list[float] = []

    def work(x: Tensor, more: dict[str, Any]) -> dict[str, Tensor]:
        calls.append(more["scale"])
        return {"out": (x + more["parts"][0]) * more["scale"]}

    replays = Replays("work", work, make_graph=EagerGraph)
    one, two = torch.ones(2), torch.full((2,), 2.0)
    with torch.no_grad():
        for scale in (1.0, 3.0, 1.0):
            for part in (one, two):
                assert torch.equal(replays(one, {"scale": scale, "parts": (part,)})["out"], (one + part) * scale)
        assert replays.kept == 2
        replays(one, {"scale": 1.0, "parts": (one,)}, state="another")
        assert replays.kept == 3
        replays(one, {"scale": 1.0, "parts": (one,), "set": {1, 2}})
    assert replays.kept == 3 and "an argument is neither a tensor nor hashable" in caplog.text
