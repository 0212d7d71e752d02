"""The loop: what is asked of the network, in which rows, and what is done with the answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from helpers.recording import Recorder, elementwise, normal
from helpers.tables import FAMILIES, SIGMAS, dense_table, epd_table, full_table
from torch import Tensor

import epd
from epd.solvers.answers import batched
from epd.solvers.node_order import ROWS
from epd.solvers.parallel import Coefficients, parallel
from epd.solvers.walk import History, Steps

rules = epd.rules
GRID = torch.tensor(SIGMAS, dtype=torch.float64)
RULES: dict[str, tuple[epd.Rule, int]] = {  # and the sequential calls of 4 steps
    "euler": (rules.euler(), 4),
    "euler, AFS": (rules.euler(afs=True), 3),
    "heun": (rules.heun(), 8),
    "heun, AFS": (rules.heun(afs=True), 7),
    "dpm2": (rules.dpm2(), 8),
    "dpm2(0.3), AFS": (rules.dpm2(0.3, afs=True), 7),
    "ipndm": (rules.ipndm(), 4),
    "ipndm, computed, AFS": (rules.ipndm(3, "computed", afs=True), 3),
    "dpmpp(1)": (rules.dpmpp(1), 4),
    "dpmpp(2), AFS": (rules.dpmpp(2, afs=True), 3),
    "dpmpp(3)": (rules.dpmpp(3, num_steps=4), 4),
    "dpm(3)": (rules.dpmpp(3, predict_x0=False), 4),
}
EVERY = RULES | {name: (table.rule(), table.depth) for name, table in FAMILIES.items()}
every_rule = pytest.mark.parametrize("name", EVERY)
every_family = pytest.mark.parametrize("name", FAMILIES)


NOISE = normal(5, 2, 3)


def by_hand(table: epd.Table, noise: Tensor) -> Iterator[Tensor]:
    """The states of a table from the formulas in its docstring, one point after another, nothing skipped."""
    get, width = functools.partial(getattr, table), table.num_nodes
    x, past = noise * float(get("sigmas")[0]), []  # past: newest step first, [anchor, fan 1..J], None where unknown
    yield x

    def slope(at: Tensor, sigma: float, scale: float = 1.0) -> Tensor:
        return (at - elementwise(at, torch.tensor(sigma * scale, dtype=torch.float64))) / sigma

    def total(weights: np.ndarray, terms: list[Tensor | None]) -> Tensor:
        out = torch.zeros_like(x)
        for weight, term in zip(weights.tolist(), terms, strict=False):
            if weight:
                assert term is not None
                out = out + weight * term
        return out

    for n, calls in enumerate(table.calls):
        here, there = get("sigmas")[n : n + 2].tolist()
        analytic = x / (1 + here**2) ** 0.5
        told = get("anchor_scale")[n]
        anchor = analytic if n == 0 and (calls == 0 or table.afs and calls == 2) else slope(x, here, told)
        if table.afs and n == 0 and calls == 1:
            past = [[analytic] + [None] * width]
        memory = [term for step in past for term in step]
        fan: list[Tensor | None] = []
        for j in range(width):
            lookahead, mid = (
                table.effective_lookahead[n, j],
                there ** get("nodes")[n, j] * here ** (1 - get("nodes")[n, j]),
            )
            if not lookahead.any() or calls == 0:
                fan.append(None)
                continue
            ahead = x + (mid - here) * total(lookahead, [anchor if calls == 2 else None, *memory])
            fan.append(slope(ahead, mid, get("sigma_scale")[n, j]))
        mean = get("anchor")[n] * anchor + total(get("weights")[n] * get("slope_scale")[n], fan)
        x = x + (there - here) * (mean + total(get("memory")[n], memory))
        past = [[anchor, *fan], *past]
        yield x


def states(rule: epd.Rule, noise: Tensor = NOISE, denoiser: epd.Denoiser = elementwise) -> Tensor:
    return torch.stack(list(epd.trajectory(rule, denoiser, noise, SIGMAS)))


@every_family
def test_a_table_does_what_its_docstring_says(name: str) -> None:
    expected = torch.stack(list(by_hand(FAMILIES[name], NOISE)))
    torch.testing.assert_close(states(FAMILIES[name].rule()), expected, rtol=1e-12, atol=1e-12)


@every_rule
def test_trajectory_starts_at_scaled_noise_and_solve_is_its_end(name: str) -> None:
    rule, _ = EVERY[name]
    recorder = Recorder()
    steps = epd.trajectory(rule, recorder, NOISE, SIGMAS)
    assert torch.equal(next(steps), NOISE * SIGMAS[0])
    assert not recorder.calls  # nothing is evaluated before it is wanted
    last = list(steps)[-1]
    assert torch.equal(epd.solve(rule, elementwise, NOISE, SIGMAS), last)


@every_rule
def test_sequential_calls_and_their_plan(name: str) -> None:
    rule, depth = EVERY[name]
    recorder = Recorder()
    epd.solve(rule, recorder, NOISE, GRID)
    planned = [ask for step in epd.plan(rule, GRID) for ask in step]
    assert len(recorder.calls) == len(planned) == depth
    for (x, told), ask in zip(recorder.calls, planned, strict=True):
        width = len(ask.points)
        assert x.shape == (len(NOISE) * width, 2, 3)
        assert told.dtype == torch.float64
        # Sample-major: the K points of sample 0, then those of sample 1, ...
        assert torch.equal(told.reshape(len(NOISE), width), ask.network_sigma.expand(len(NOISE), width))


@every_family
def test_widths_and_evaluations_are_what_the_table_says(name: str) -> None:
    table, recorder = FAMILIES[name], Recorder()
    epd.solve(table.rule(), recorder, NOISE, GRID)
    widths = [len(x) // len(NOISE) for x, _ in recorder.calls]
    assert (len(widths), sum(widths), max(widths)) == (table.depth, table.nfe, table.num_parallel)


@pytest.mark.parametrize("afs", [False, True])
def test_fan_is_told_scaled_sigmas_between_the_steps(afs: bool) -> None:
    table, recorder = epd_table(afs), Recorder()
    epd.solve(table.rule(), recorder, NOISE, SIGMAS)
    calls = recorder.calls if not afs else [recorder.calls[0], *recorder.calls]  # so that fans have odd places
    for n in range(4):
        r = table.nodes[n]
        expected = table.sigma_scale[n] * SIGMAS[n + 1] ** r * SIGMAS[n] ** (1 - r)
        np.testing.assert_allclose(calls[2 * n + 1][1].reshape(5, 3), np.tile(expected, (5, 1)), rtol=1e-14)
        if n or not afs:
            assert calls[2 * n][1].tolist() == [SIGMAS[n]] * 5


def test_the_told_sigma_is_not_the_divisor() -> None:
    scaled = dataclasses.replace(epd_table(), slope_scale=None)
    plain = dataclasses.replace(scaled, sigma_scale=None)
    # A denoiser that ignores what it is told can see no difference.
    blind = lambda x, sigma: 0.3 * x  # noqa: E731
    assert torch.equal(states(scaled.rule(), denoiser=blind), states(plain.rule(), denoiser=blind))
    assert not torch.equal(states(scaled.rule()), states(plain.rule()))


def test_points_of_one_call_are_sample_major() -> None:
    points, sigma = normal(3, 5, 2, seed=4), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    recorder = Recorder()
    answer = batched(recorder)(epd.Ask(points, sigma, sigma / 2))
    ((rows, told),) = recorder.calls
    for b in range(5):
        for k in range(3):
            assert torch.equal(rows[b * 3 + k], points[k, b])
            assert told[b * 3 + k] == sigma[k] ** 2 / 2
            one = (points[k, b] - elementwise(points[k, b][None], sigma[k] ** 2 / 2)[0]) / sigma[k]
            assert torch.equal(answer[k, b], one)


def one_by_one(rule: epd.Rule) -> epd.Rule:
    """The same rule, its points asked for in calls of their own."""

    def wrapped(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        asking = rule(x, sigma, sigma_next, n, history)
        answer = None
        while True:
            try:
                ask = next(asking) if answer is None else asking.send(answer)
            except StopIteration as stop:
                return stop.value
            parts = []
            for k in range(len(ask.points)):
                scale = None if ask.sigma_scale is None else ask.sigma_scale[k : k + 1]
                parts.append((yield epd.Ask(ask.points[k : k + 1], ask.sigma[k : k + 1], scale)))
            answer = torch.cat(parts)

    return wrapped


@every_rule
def test_batched_points_are_serial_points(name: str) -> None:
    rule, _ = EVERY[name]
    assert torch.equal(states(one_by_one(rule)), states(rule))


@every_rule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sample_does_not_depend_on_its_batch(name: str, dtype: torch.dtype) -> None:
    rule, _ = EVERY[name]
    together = states(rule, NOISE.to(dtype))
    for b in range(len(NOISE)):
        assert torch.equal(states(rule, NOISE[b : b + 1].to(dtype))[:, 0], together[:, b])
    assert torch.equal(states(rule, NOISE.flip(0).to(dtype)).flip(1), together)


@every_rule
def test_the_state_keeps_its_dtype(name: str) -> None:
    rule, _ = EVERY[name]
    exact = states(rule)
    for dtype, accuracy in ((torch.float32, 2e-5), (torch.bfloat16, 0.5)):
        found = states(rule, NOISE.to(dtype))
        assert found.dtype == dtype
        assert float((found.double() - exact)[-1].abs().max() / exact[-1].abs().max()) < accuracy


@every_family
def test_order_of_nodes_does_not_matter(name: str) -> None:
    table = FAMILIES[name]
    ordered = table.sorted()
    assert bool((np.diff(ordered.nodes, axis=1) >= 0).all())
    torch.testing.assert_close(states(ordered.rule()), states(table.rule()), rtol=1e-12, atol=1e-12)


def test_a_node_may_be_split_in_two_halves() -> None:
    table = epd_table(order=3)
    split = [0, 1, 1, 2]
    changes = {k: getattr(table, k)[:, split] for k in ROWS}
    changes["weights"] = changes["weights"] * [1, 0.5, 0.5, 1]
    other = dataclasses.replace(table, **changes)
    assert other.num_parallel == 4
    torch.testing.assert_close(states(other.rule()), states(table.rule()), rtol=1e-12, atol=1e-12)


ARRAYS = ("nodes", "weights", "sigma_scale", "anchor_scale", "anchor", "memory", "lookahead")
Numbers = Callable[..., Tensor]


def solved(c: Coefficients, noise: Tensor) -> tuple[Numbers, tuple[Tensor, ...]]:
    """The end state as a function of every number of a table, and those numbers."""

    def end(sigmas: Tensor, *numbers: Tensor) -> Tensor:
        changed = dataclasses.replace(c, **dict(zip(ARRAYS, numbers, strict=True)))
        return epd.solve(parallel(changed), elementwise, noise, sigmas)

    values = (c.sigmas, *(getattr(c, name) for name in ARRAYS))
    return end, tuple(value.clone().requires_grad_() for value in values)


@pytest.mark.parametrize(
    "table",
    [full_table(2, True, past=1), full_table(1, past=1), full_table([1, 2, 1, 2], True), dense_table()],
    ids=["two-call", "one-call", "mixed", "dense"],
)
def test_gradients_of_a_table_are_finite_differences(table: epd.Table) -> None:
    end, numbers = solved(table.coefficients(), normal(2, 2))
    assert torch.autograd.gradcheck(end, numbers, eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_gradients_of_a_rule_are_finite_differences(name: str) -> None:
    rule, _ = RULES[name]
    inputs = normal(2, 2).requires_grad_(), GRID.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda noise, sigmas: epd.solve(rule, elementwise, noise, sigmas), inputs)


@every_rule
def test_detached_steps_keep_gradients_within_a_step(name: str) -> None:
    rule, _ = EVERY[name]
    for detach in (False, True):
        gains = torch.ones(4, dtype=torch.float64, requires_grad=True)
        step = -1

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return elementwise(x, sigma) * gains[step]  # noqa: B023 - the gain of the step that is running

        run = epd.trajectory(rule, denoiser, NOISE, SIGMAS, detach=detach)
        x = next(run)
        for step in range(4):  # noqa: B007
            x = next(run)
        (gradient,) = torch.autograd.grad(x.sum(), gains)
        assert gradient[3] != 0
        assert bool((gradient[:3] == 0).all()) == detach


def test_a_table_may_stop_early() -> None:
    rule = FAMILIES["anchor and memory"].rule()
    assert torch.equal(epd.solve(rule, elementwise, NOISE, SIGMAS[:3]), states(rule)[2])


@pytest.mark.parametrize("rule", [rules.euler(), rules.dpmpp(1), rules.dpmpp(3, num_steps=4)])
def test_a_last_step_to_zero_lands_on_the_denoised(rule: epd.Rule) -> None:
    recorder = Recorder()
    found = epd.solve(rule, recorder, NOISE, [*SIGMAS[:-1], 0.0])
    torch.testing.assert_close(found, elementwise(*recorder.calls[-1]), rtol=1e-13, atol=1e-13)


def test_slope_takes_one_sigma_or_one_per_row() -> None:
    levels = torch.tensor([0.1, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    rows = [epd.slope(elementwise, NOISE[b : b + 1], levels[b]) for b in range(5)]
    assert torch.equal(epd.slope(elementwise, NOISE, levels), torch.cat(rows))
    expected = (NOISE - elementwise(NOISE, levels[2])) / 2.0
    torch.testing.assert_close(epd.slope(elementwise, NOISE, levels[2]), expected, rtol=1e-15, atol=0)
