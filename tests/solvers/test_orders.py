"""Orders of convergence, measured on nonlinear exact flows.

Adding a rule is adding a row to ORDERS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.tables import fan
from scipy.integrate import solve_ivp
from torch import Tensor

import epd
from epd.denoisers.protocol import Path
from epd.solvers import registry
from epd.solvers.rules import adams_bashforth, uniform_adams_bashforth
from epd.solvers.walk import History, Steps

rules, Table = epd.rules, epd.Table
BAND = 0.15
STEPS = (64, 128, 256)
# Away from the ends, where high derivatives would push the asymptotic regime to thousands of steps.
RANGE: dict[Path, tuple[float, float]] = {"ve": (3.0, 1.5), "flow": (0.8, 0.35)}
PATHS: list[Path] = ["ve", "flow"]


@functools.cache
def mixture(path: Path) -> epd.GaussianMixture:
    """Three wide, unequal, overlapping components: a smooth flow that is far from linear."""
    generator = torch.Generator().manual_seed(0)
    means = 1.2 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
    return epd.GaussianMixture(means, [0.7, 0.9, 0.6], [0.5, 0.3, 0.2], path=path)


NOISE = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@functools.cache
def exact(path: Path) -> Callable[[float], Tensor]:
    """sigma -> the exact state (4, 2) of the trajectory from NOISE, by another integrator, to 1e-12."""
    first, last = RANGE[path]

    def slope(sigma: float, flat: np.ndarray) -> np.ndarray:
        x = torch.tensor(flat).reshape(NOISE.shape)
        return epd.slope(mixture(path), x, torch.tensor(sigma, dtype=torch.float64)).flatten().numpy()

    start = (NOISE * first).flatten().numpy()
    # Short steps, because the dense output is of order 7 only.
    found = solve_ivp(slope, (first, last), start, "DOP853", dense_output=True, rtol=1e-13, atol=1e-14, max_step=0.05)
    return lambda sigma: torch.tensor(found.sol(float(sigma))).reshape(NOISE.shape)


def equal(path: Path, steps: int) -> Tensor:
    return torch.linspace(*RANGE[path], steps + 1, dtype=torch.float64)


def polynomial(path: Path, steps: int) -> Tensor:
    return epd.schedules.polynomial(steps, RANGE[path][1], RANGE[path][0], rho=3.0)


def alternating(path: Path, steps: int) -> Tensor:
    """Steps 1, 2, 1, 2, ...: refined, it never looks uniform, unlike any smooth grid."""
    first, last = RANGE[path]
    share = torch.tensor([1.0, 2.0] * (steps // 2), dtype=torch.float64).cumsum(0)
    return torch.cat([torch.tensor([first], dtype=torch.float64), first + (last - first) * share / share[-1]])


Grid = Callable[[Path, int], Tensor]


def started(rule: epd.Rule, path: Path, steps: int) -> epd.Rule:
    """The rule with exact first steps.

    A multistep rule begins with lower orders, which would limit the slope that is measured. The rule itself runs (its
    history fills with the slopes that it asks for), only its answer is replaced by the exact mean slope.
    """

    def wrapped(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
        mean, history = yield from rule(x, sigma, sigma_next, n, history)
        if n < steps:
            mean = (exact(path)(float(sigma_next)) - x) / (sigma_next - sigma)
        return mean, history

    return wrapped


def order_of(make: Callable[[Tensor], epd.Rule], path: Path, grid: Grid, exact_steps: int = 0) -> float:
    """Slope of log error against log step by regression; `make` gives the rule of a grid."""
    errors = []
    for steps in STEPS:
        sigmas = grid(path, steps)
        found = epd.solve(started(make(sigmas), path, exact_steps), mixture(path), NOISE, sigmas)
        errors.append(float((found - exact(path)(RANGE[path][1])).square().mean().sqrt()))
    return float(np.polyfit(-np.log(STEPS), np.log(errors), 1)[0])


@pytest.mark.parametrize("path", PATHS)
def test_the_reference_is_far_more_accurate_than_what_it_judges(path: Path) -> None:
    few, many = (
        epd.solve(started(rules.ipndm(4), path, 3), mixture(path), NOISE, equal(path, steps)) for steps in (320, 640)
    )
    extrapolated = (16 * many - few) / 15
    assert float((extrapolated - exact(path)(RANGE[path][1])).abs().max()) < 5e-12


@dataclass(frozen=True)
class Row:
    """A rule, the order that it must show, on which grid, and how many exact steps it starts from."""

    name: str
    order: float
    rule: epd.Rule
    grid: Grid
    exact_steps: int = 0


ORDERS = [
    Row("euler", 1, rules.euler(), polynomial),
    Row("heun", 2, rules.heun(), polynomial),
    *[Row(f"dpm2({r})", 2, rules.dpm2(r), polynomial) for r in (0.25, 0.5, 0.9)],
    # Uniform weights have their order on equal steps; where steps are unlike (never so on a smooth grid) only order 1.
    *[Row(f"ipndm({p})", p, rules.ipndm(p), equal, p - 1) for p in (1, 2, 3, 4)],
    *[Row(f"ipndm({p}) elsewhere", 1, rules.ipndm(p), alternating, p - 1) for p in (2, 3, 4)],
    *[Row(f"ipndm({p}, computed)", p, rules.ipndm(p, "computed"), polynomial, p - 1) for p in (1, 2, 3, 4)],
    *[Row(f"ipndm({p}, computed) elsewhere", p, rules.ipndm(p, "computed"), alternating, p - 1) for p in (2, 3, 4)],
    # The published third-order multistep formula weighs its second divided difference with half of what a Taylor
    # expansion asks for, so that it is of second order. Golden values pin it; its true order is stated here.
    *[Row(f"dpmpp({p})", min(p, 2), rules.dpmpp(p), polynomial, p - 1) for p in (1, 2, 3)],
    *[Row(f"dpmpp(3, {kind}, exact)", 3, rules.dpmpp(3, kind, weights="exact"), polynomial, 2) for kind in (1, 0)],
    *[Row(f"dpmpp({p}, slopes)", min(p, 2), rules.dpmpp(p, False), polynomial, p - 1) for p in (1, 2, 3)],
    *[Row(f"dpmpp({p}) elsewhere", min(p, 2), rules.dpmpp(p), alternating, p - 1) for p in (1, 2, 3)],
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("row", ORDERS, ids=lambda row: row.name)
def test_rule(row: Row, path: Path) -> None:
    assert order_of(lambda sigmas: row.rule, path, row.grid, row.exact_steps) == pytest.approx(row.order, abs=BAND)


@pytest.mark.parametrize("name", registry.NUMBERED)
def test_every_rule_that_has_a_name_has_a_measured_order(name: str) -> None:
    base, order = registry.NUMBERED[name]
    told = f"{base}({order})" if registry.RULES[base].orders else base
    assert any(row.name.split(" ")[0] in (told, f"{base}(0.5)") for row in ORDERS), f"{name} is no row of ORDERS"


@dataclass(frozen=True)
class Fan:
    nodes: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def order(self) -> int:
        return 2 if abs(np.dot(self.nodes, self.weights) - 0.5) < 1e-12 else 1


FANS = [
    Fan((0.5,), (1.0,)),
    Fan((0.45,), (1.0,)),
    Fan((0.2, 0.8), (0.5, 0.5)),
    Fan((0.8, 0.35), (1 / 3, 2 / 3)),
    Fan((0.2, 0.9), (0.5, 0.5)),
    Fan((0.1, 0.5, 0.8), (0.3, 0.2, 0.5)),
    Fan((0.1, 0.4, 0.75), (0.25, 0.25, 0.5)),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("plugin", [1, 3])
@pytest.mark.parametrize("case", FANS, ids=str)
def test_fan_is_second_order_iff_its_nodes_average_to_one_half(case: Fan, plugin: int, path: Path) -> None:
    found = order_of(lambda sigmas: fan(sigmas, case.nodes, case.weights, plugin).rule(), path, polynomial, plugin - 1)
    assert found == pytest.approx(case.order, abs=BAND)


# calls -> how many of the remembered [anchor, fan] exist -> weights of [anchor, remembered anchor, remembered fan].
LOOKAHEAD = {1: ([0, 0, 0], [0, 1, 0], [0, 1.5, -0.5]), 2: ([1, 0, 0], [0.8, 0.2, 0], [0.7, 0.2, 0.1])}


def remembering(sigmas: Tensor, calls: int, second_moment: float) -> epd.Table:
    """A table with anchor, one fan point and one step of memory whose moments are (1, second_moment) in every step.

    Memory has fixed weights, the fan point sets the second moment, the anchor the first.
    """
    s, n = sigmas.numpy(), len(sigmas) - 1
    nodes = np.full((n, 1), 0.6)
    where = s[1:] ** 0.6 * s[:-1] ** 0.4
    weights, anchor, memory, lookahead = np.zeros((n, 1)), np.zeros(n), np.zeros((n, 2)), np.zeros((n, 1, 3))
    for k in range(n):
        u, past = ((v - s[k]) / (s[k + 1] - s[k]) for v in (where[k], np.array([s[k - 1], where[k - 1]])))
        # A one-call step 0 knows no direction yet: it has no fan, now or in step 1's memory.
        known = 0 if k == 0 else 1 if k == 1 and calls == 1 else 2
        memory[k] = [[0, 0], [-0.15, 0], [-0.15, 0.1]][known]
        lookahead[k, 0] = LOOKAHEAD[calls][known]
        if lookahead[k].any():
            weights[k] = (second_moment - (memory[k] @ past if k else 0)) / u
        anchor[k] = 1 - weights[k, 0] - memory[k].sum()
    return Table(s, nodes, weights, anchor=anchor, memory=memory, lookahead=lookahead, calls=calls)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("second_moment", [0.5, 0.4])
def test_anchor_and_memory_are_second_order_iff_the_moments_say_so(
    calls: int, second_moment: float, path: Path
) -> None:
    table = remembering(alternating(path, 40), calls, second_moment)
    told = table.moments()[1:]  # the first one-call step knows no direction yet: it is Euler's, replaced by exact
    np.testing.assert_allclose(told, np.tile([1.0, second_moment], (len(told), 1)), atol=1e-12)
    found = order_of(lambda sigmas: remembering(sigmas, calls, second_moment).rule(), path, alternating, 1)
    assert found == pytest.approx(2 if second_moment == 0.5 else 1, abs=BAND)


@pytest.mark.parametrize("path", PATHS)
def test_a_slope_scale_is_inconsistent_and_the_moments_say_so(path: Path) -> None:
    def table(sigmas: Tensor) -> epd.Table:
        n = len(sigmas) - 1
        return Table(sigmas, [[0.5]] * n, [[1.0]] * n, slope_scale=[[1.05]] * n)

    np.testing.assert_allclose(table(polynomial(path, 20)).moments()[:, 0], 1.05, rtol=1e-14)
    assert order_of(lambda sigmas: table(sigmas).rule(), path, polynomial) == pytest.approx(0, abs=BAND)


def adams_table(sigmas: Tensor, order: int, computed: bool) -> epd.Table:
    """Adams-Bashforth written as a one-call table without a fan."""
    n = len(sigmas) - 1
    anchor, memory = np.zeros(n), np.zeros((n, order - 1))
    for k in range(n):
        p = min(order, k + 1)
        past = sigmas[k - p + 1 : k + 1].flip(0)
        w = adams_bashforth(past, sigmas[k], sigmas[k + 1]).tolist() if computed else uniform_adams_bashforth(p)
        anchor[k], memory[k, : p - 1] = w[0], w[1:]
    return Table(sigmas, np.zeros((n, 0)), np.zeros((n, 0)), anchor=anchor, memory=memory, calls=1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_as_a_table_is_ipndm(order: int, computed: bool, path: Path) -> None:
    sigmas = polynomial(path, 9)
    table = adams_table(sigmas, order, computed)
    assert table.depth == table.nfe == 9
    rule = rules.ipndm(order, "computed" if computed else "uniform")
    pairs = zip(*(epd.trajectory(r, mixture(path), NOISE, sigmas) for r in (table.rule(), rule)), strict=True)
    assert max(float((ours - theirs).abs().max()) for ours, theirs in pairs) < 1e-12


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_one_call_table_with_memory_has_the_order_of_its_weights(order: int, path: Path) -> None:
    found = order_of(lambda sigmas: adams_table(sigmas, order, True).rule(), path, alternating, order - 1)
    assert found == pytest.approx(order, abs=BAND)
