"""Coefficients against the textbook, and order conditions proven in rationals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.tables import fan

import epd
from epd.solvers.rules import adams_bashforth, uniform_adams_bashforth

rules, Table = epd.rules, epd.Table

TEXTBOOK = {
    1: ["1"],
    2: ["3/2", "-1/2"],
    3: ["23/12", "-4/3", "5/12"],
    4: ["55/24", "-59/24", "37/24", "-3/8"],
    5: ["1901/720", "-1387/360", "109/30", "-637/360", "251/720"],
}


@pytest.mark.parametrize("order", TEXTBOOK)
def test_uniform_adams_bashforth_is_the_textbook_to_the_bit(order: int) -> None:
    assert uniform_adams_bashforth(order) == [float(Fraction(w)) for w in TEXTBOOK[order]]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_computed_adams_bashforth_is_uniform_on_equal_steps_and_exact_on_others(order: int) -> None:
    past = torch.arange(10, 10 + order, dtype=torch.float64)
    now, then = past[0], past[0] - 1
    np.testing.assert_allclose(adams_bashforth(past, now, then), uniform_adams_bashforth(order), rtol=1e-12)
    uneven = torch.tensor([7.0, 9.5, 10.0, 14.0], dtype=torch.float64)[:order]
    weights = adams_bashforth(uneven, uneven[0], torch.tensor(3.0, dtype=torch.float64))
    for power in range(order):  # the mean of sigma^power over [3, 7]
        mean = (7.0 ** (power + 1) - 3.0 ** (power + 1)) / ((power + 1) * 4)
        assert float(weights @ uneven**power) == pytest.approx(mean, rel=1e-11)


F = Fraction

STARS = [
    ([F(1, 2)], [F(1)]),
    ([F(1, 4), F(3, 4)], [F(1, 2), F(1, 2)]),
    ([F(1, 6), F(2, 3)], [F(1, 3), F(2, 3)]),
    ([F(3, 4), F(3, 8)], [F(1, 3), F(2, 3)]),
    ([F(1, 8), F(1, 2), F(13, 16)], [F(1, 4), F(1, 4), F(1, 2)]),
    ([F(1, 3)], [F(1)]),
    ([F(1, 4), F(1, 2)], [F(3, 4), F(1, 4)]),
]


@pytest.mark.parametrize(("nodes", "weights"), STARS)
def test_moments_of_short_steps_are_those_of_the_star_in_rationals(
    nodes: list[Fraction], weights: list[Fraction]
) -> None:
    # Geometric nodes are arithmetic ones in the limit of short steps; Richardson in the step takes the limit.
    measured = []
    for step in (1e-3, 5e-4):
        table = fan(torch.tensor([1.0, 1.0 - step]), [float(r) for r in nodes], [float(w) for w in weights])
        measured.append(table.moments()[0])
    limit = 2 * measured[1] - measured[0]
    first = sum((w * r for w, r in zip(weights, nodes, strict=True)), F(0))
    np.testing.assert_allclose(limit, [float(sum(weights)), float(first)], atol=1e-6)


def tableau(rule: epd.Rule, step: float) -> tuple[list[float], list[float]]:
    """Weights and positions of a two-stage rule's slopes in the step from sigma 1 to 1 - step, by what it makes of
    unit slopes.
    """
    x, ends = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([1.0, 1.0 - step], dtype=torch.float64)
    weights, positions = [], []
    for stage in (0, 1):
        asking, answers = rule(x, ends[0], ends[1], 0, ()), iter([float(stage == 0), float(stage == 1)])
        ask, positions = next(asking), []
        try:
            while True:
                positions.append((1.0 - float(ask.sigma[0])) / step)
                ask = asking.send(torch.full_like(ask.points, next(answers)))
        except StopIteration as stop:
            weights.append(float(stop.value[0]))
    return weights, positions


TWO_STAGES = {"heun": rules.heun(), **{f"dpm2({r})": rules.dpm2(r) for r in (0.25, 0.5, 0.9)}}


@pytest.mark.parametrize("name", TWO_STAGES)
def test_two_stage_rules_meet_the_second_order_conditions(name: str) -> None:
    (b0, b1), (c0, c1) = tableau(TWO_STAGES[name], 1e-6)
    assert (b0 + b1, c0) == (pytest.approx(1, abs=1e-12), 0)
    assert b1 * c1 == pytest.approx(0.5, abs=1e-5)  # positions are geometric: arithmetic up to the step
