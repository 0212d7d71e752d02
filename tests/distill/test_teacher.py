"""Teachers: how finely rules are solved, and what a cached trajectory is proven by."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture

from epd.distill.plan import make_plan
from epd.distill.teacher import Teacher
from epd.distill.train import Trainer
from epd.runs.processes import Workers
from epd.solvers.exact import converged

# RMSE to the converged end of 8 steps in each of three intervals; of 8 steps in all it was .071, .042 and .067.
ERRORS = {"heun": 0.0067, "dpm2": 0.0040, "ipndm": 0.0036}


@pytest.mark.parametrize("objective", ["end", "both"])
@pytest.mark.parametrize("name", ERRORS)
def test_a_rule_teacher_takes_its_steps_in_every_interval_of_the_table_whatever_the_objective(
    name: str, objective: str, tmp_path: Path
) -> None:
    model = toy_mixture()
    config = toy_config(family="epd", calls=6, teacher=name, optimizer="adam", objective=objective)
    plan = make_plan(model, config)
    teacher = Trainer(model, plan, None, tmp_path, Workers()).teacher
    assert plan.tables[0].num_steps == 3 and len(teacher.fine_sigmas()) == 1 + 3 * 8
    states, noise = teacher.states(range(64)), teacher.noise(range(64))
    assert states.shape == (1 if objective == "end" else 3, 64, 1, 2, 2)
    end = converged(model, noise, torch.tensor(plan.tables[0].sigmas)[[0, -1]], 1e-7, 1e-7)[-1]
    assert float((states[-1] - end).square().mean().sqrt()) == pytest.approx(ERRORS[name], rel=0.03)


def test_the_steps_of_a_heun_teacher_are_those_of_a_loop_written_out(tmp_path: Path) -> None:
    """Steps even in sigma^(1/7) between the table's sigmas 20, 1, 0.02."""
    model, grid = toy_mixture(), (20.0, 1.0, 0.02)
    config = toy_config(teacher="heun", teacher_multiplier=4)
    teacher = Teacher(model, config, torch.tensor(grid, dtype=torch.float64), tmp_path, ends=True)
    roots = [a + j / 4 * (b - a) for a, b in itertools.pairwise(s ** (1 / 7) for s in grid) for j in range(4)]
    sigmas = [torch.tensor(root**7, dtype=torch.float64) for root in [*roots, 0.02 ** (1 / 7)]]
    x = teacher.noise(range(8)) * 20
    for high, low in itertools.pairwise(sigmas):
        slope = (x - model(x, high)) / high
        ahead = x + (low - high) * slope
        x = x + (low - high) * (slope + (ahead - model(ahead, low)) / low) / 2
    assert torch.allclose(teacher.states(range(8))[-1], x, rtol=1e-12, atol=1e-12)


def test_an_exact_teacher_of_ends_is_shared_by_tables_of_other_grids(tmp_path: Path) -> None:
    grids = [torch.tensor([20.0, middle, 0.02], dtype=torch.float64) for middle in (1.0, 3.0)]
    first, second = (Teacher(toy_mixture(), toy_config(), grid, tmp_path, ends=True) for grid in grids)
    assert first.key() == second.key() and first.states(range(4)).shape == (1, 4, 1, 2, 2)
    rules = [Teacher(toy_mixture(), toy_config(teacher="heun"), grid, tmp_path, ends=True) for grid in grids]
    assert rules[0].key() != rules[1].key()


def test_a_pipe_in_the_place_of_a_cached_block_is_solved_again_and_not_waited_for(tmp_path: Path) -> None:
    model = toy_mixture()
    teacher = Teacher(model, toy_config(), torch.tensor([20.0, 2.0, 0.02], dtype=torch.float64), tmp_path)
    span = teacher.span(0)
    solved = teacher.states([0])
    teacher.path(*span).unlink()
    os.mkfifo(teacher.path(*span))
    assert torch.equal(teacher.states([0]), solved)
    assert teacher.path(*span).is_file()
