"""PAS: directions of a sample's own trajectory; coordinates that no others are better than, kept where they help."""

from __future__ import annotations

import pytest
import torch
from helpers.counting import Counted
from helpers.toy_models import toy_mixture
from torch import Tensor

from epd import Table
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Path
from epd.distill.config import DistillConfig
from epd.distill.initial import initial_table
from epd.distill.pas import Truth, pas_of, truth_of
from epd.distill.teacher import POOL_SEEDS
from epd.solvers.corrected import along, corrected, directions, pas
from epd.solvers.exact import converged
from epd.solvers.registry import USUAL, Ends, make_sigmas
from epd.solvers.rules import dpmpp, euler, heun, ipndm
from epd.solvers.solve import solve, trajectory
from epd.solvers.walk import Rule

PATHS: tuple[Path, ...] = ("ve", "flow")
RULES: dict[str, Rule] = {"euler": euler(), "ipndm": ipndm(3), "dpmpp": dpmpp(2), "afs": euler(afs=True)}


def schedule(path: Path, steps: int = 5) -> Tensor:
    model = toy_mixture(path)
    return make_sigmas(USUAL[path], steps, Ends.of(model))


def fresh(path: Path, count: int = 64) -> Tensor:
    return unit_noise(range(count), toy_mixture(path).shape, torch.float64)


def test_directions_are_orthonormal_begin_at_the_slope_and_span_what_was_seen() -> None:
    torch.manual_seed(0)
    for seen in range(1, 6):
        rows = torch.randn(seen + 1, 7, 2, 3, dtype=torch.float64)
        units = directions(rows[-1], [*rows[:-1]])
        assert units.shape == (7, min(seen + 1, 3) + 1, 6)
        first = rows[-1].flatten(1)
        torch.testing.assert_close(units[:, 0] * first.norm(dim=1, keepdim=True), first)
        products = units @ units.mT
        lengths = products.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(products, torch.diag_embed(lengths.round()), rtol=0, atol=1e-9)
        assert (lengths.sum(1).round() == min(seen + 1, 4)).all()  # no more than there are vectors
        every = rows.flatten(2).transpose(0, 1)
        outside = units - units @ torch.linalg.pinv(every) @ every
        assert float(outside.abs().max()) < 1e-9


def test_directions_have_a_sign_and_turn_with_the_sample() -> None:
    torch.manual_seed(1)
    rows = torch.randn(4, 5, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    units, turned = (directions(own[-1], [*own[:-1]]) for own in (rows, rows @ turn))
    torch.testing.assert_close(units @ turn, turned)
    torch.testing.assert_close(directions(-rows[-1], [*-rows[:-1]]), -units)


def test_slopes_that_are_not_finite_have_no_directions() -> None:
    slope = torch.randn(2, 4)
    slope[1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        directions(slope, [torch.randn(2, 4)])


def test_what_lies_along_the_slope_leaves_nothing() -> None:
    slope = torch.randn(3, 4, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        units = directions(slope.to(dtype), [40 * slope.to(dtype), -3 * slope.to(dtype)])
        assert torch.equal(units[:, 1:], torch.zeros(3, 3, 4, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name in RULES for path in PATHS if (name, path) != ("afs", "flow")]
)
def test_the_slope_as_it_is_leaves_every_rule_as_it_is(name: str, path: Path) -> None:
    model, rule, sigmas, noise = toy_mixture(path), RULES[name], schedule(path), fresh(path, 6)
    plain = [*trajectory(rule, model, noise, sigmas)]
    for own in (pas(rule, [None] * 5), corrected(rule, lambda slope: slope.value)):
        for detach in (False, True):
            for a, b in zip(trajectory(own, model, noise, sigmas, detach=detach), plain, strict=True):
                assert torch.equal(a, b)


def test_the_length_of_the_slope_as_coordinate_is_the_slope() -> None:
    model, sigmas, noise = toy_mixture(), schedule("ve"), fresh("ve", 1)
    lengths: list[Tensor] = []
    heard = corrected(euler(), lambda slope: lengths.append(slope.value.norm()) or slope.value)  # type: ignore[func-returns-value]
    plain = solve(heard, model, noise, sigmas)
    own = pas(euler(), [torch.tensor([length, 0.0, 0.0, 0.0], dtype=torch.float64) for length in lengths])
    torch.testing.assert_close(solve(own, model, noise, sigmas), plain)


@pytest.mark.parametrize(
    ("name", "path"), [("euler", "ve"), ("ipndm", "ve"), ("dpmpp", "ve"), ("euler", "flow"), ("dpmpp", "flow")]
)
def test_no_other_coordinates_end_a_step_nearer_to_the_teacher(name: str, path: Path) -> None:
    model, sigmas, rule = toy_mixture(path), schedule(path), RULES[name]
    truth = truth_of(model, sigmas, torch.float64)
    learned = pas_of(model, rule, truth)
    steps = [n for n, own in enumerate(learned.coordinates) if own is not None]
    assert steps and learned.numbers == 4 * len(steps)
    half = len(truth.noise) // 2
    torch.manual_seed(2)

    def error(n: int, coordinates: Tensor) -> float:
        own = [*learned.coordinates[:n], coordinates, *[None] * (4 - n)]
        states = [*trajectory(pas(rule, own), model, truth.noise[:half], sigmas)]
        return float((states[n + 1] - truth.states[n + 1][:half]).square().sum())

    for n in steps:
        found = learned.coordinates[n]
        assert found is not None
        least = error(n, found)
        for k in range(min(n + 3, 4)):  # of the first step there are three directions
            for change in (-1e-3, 1e-3):
                assert error(n, found + change * torch.eye(4, dtype=torch.float64)[k]) >= least - 1e-12


@pytest.mark.parametrize("path", PATHS)
def test_eulers_end_comes_nearer_by_a_dozen_numbers(path: Path) -> None:
    model, sigmas, noise = toy_mixture(path), schedule(path), fresh(path)
    end = converged(model, noise, sigmas[[0, -1]], 1e-8, 1e-8)[-1]
    learned = pas_of(model, euler(), truth_of(model, sigmas, torch.float64))
    before, after = ((solve(r, model, noise, sigmas) - end).square().mean() for r in (euler(), learned.rule(euler())))
    assert after < 0.8 * before and learned.numbers <= 16


def test_where_the_solver_is_exact_nothing_is_learned() -> None:
    model, sigmas = toy_mixture(), schedule("ve")
    noise = fresh("ve")
    states = torch.stack([*trajectory(ipndm(2), model, noise, sigmas)])
    truth = Truth(sigmas, noise, states, tuple(range(64)), 0)
    assert pas_of(model, ipndm(2), truth).coordinates == (None,) * 5
    assert any(own is not None for own in pas_of(model, euler(), truth).coordinates)


def test_the_teacher_is_near_the_converged_states_and_costs_what_it_says() -> None:
    toy = toy_mixture()
    means = toy.means.reshape(5, *toy.shape)
    counted = Counted(means, 0.5, sigma_min=toy.sigma_min, sigma_max=toy.sigma_max, name="toy")
    sigmas = schedule("ve", 7)
    truth = truth_of(counted, sigmas, torch.float64, samples=10)
    assert counted.rows == truth.evaluations == 10 * 63  # 60 steps at least, in 7 equal parts
    assert truth.seeds == tuple(range(POOL_SEEDS, POOL_SEEDS + 10))
    ends = converged(toy, truth.noise, sigmas, 1e-8, 1e-8)
    assert float((truth.states - ends).square().mean().sqrt()) < 0.02
    counted.rows = 0
    assert pas_of(counted, euler(), truth).evaluations == counted.rows == 10 * 7


@pytest.mark.parametrize("rule", [heun(), RULES["afs"]], ids=["two calls", "analytic"])
def test_only_rules_of_one_question_a_step_are_corrected(rule: Rule) -> None:
    own, model, noise = pas(rule, [torch.ones(4)] * 5), toy_mixture(), fresh("ve", 2)
    if rule is RULES["afs"]:  # the analytic step is taken as it is
        first = [*trajectory(own, model, noise, schedule("ve"))][1]
        assert torch.equal(first, [*trajectory(rule, model, noise, schedule("ve"))][1])
        return
    with pytest.raises(ValueError, match="step 0 asks a second question"):
        solve(own, model, noise, schedule("ve"))


def test_a_step_of_a_call_and_a_fan_is_refused() -> None:
    table = Table([20.0, 2.0, 0.02], [[0.3, 0.7]] * 2, [[0.5, 0.5]] * 2)
    with pytest.raises(ValueError, match="step 0 asks a second question"):
        solve(pas(table.rule(), [None, None]), toy_mixture(), fresh("ve", 2), table.sigmas)


def test_a_question_of_several_points_is_refused() -> None:
    model = toy_mixture()
    table = initial_table(DistillConfig(points=2, calls=2, schedule="polynomial"), model)
    with pytest.raises(ValueError, match="step 1 asks for 2 points: only rules of one are corrected"):
        solve(pas(table.rule(), [None] * 3), model, fresh("ve", 2), table.sigmas)


def test_coordinates_that_have_no_direction_yet_are_left_out() -> None:
    units = torch.eye(3, dtype=torch.float64)[None, :2]
    taken = along(torch.tensor([2.0, 3.0, 5.0, 7.0]), units, torch.zeros(1, 3, dtype=torch.float64))
    assert taken.tolist() == [[2.0, 3.0, 0.0]]
