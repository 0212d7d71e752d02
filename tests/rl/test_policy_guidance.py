"""Policies that sample how much guidance each evaluation has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.guided import classes, scaled
from helpers.policies import SIMPLEX, TABLES, generator, moved
from helpers.toy_refine import toy_refine_config

import epd
from epd.denoisers.noise import unit_noise
from epd.denoisers.rows import limit_rows
from epd.distill.config import GUIDANCE
from epd.rl.parametrisation import PARAMETRISATIONS
from epd.rl.policy import Policy
from epd.rl.policy_file import load_policy, save_policy
from epd.rl.refine import kind_of
from epd.rl.run import run_refine
from epd.rl.task import Task
from epd.solvers.parallel import parallel

KIND = {name: replace(kind, log_normal=kind.log_normal + GUIDANCE) for name, kind in PARAMETRISATIONS.items()}


@pytest.mark.parametrize("name", TABLES)
def test_one_factor_for_each_evaluation_around_that_of_the_base(name: str) -> None:
    for kind in ("ours", "published") if name in SIMPLEX else ("ours",):
        for base in (TABLES[name], scaled(TABLES[name])):
            policy, plain = Policy(base, KIND[kind]), Policy(base, kind)
            assert len(policy.structure.std) == len(plain.structure.std) + base.nfe
            mean = policy.mean()
            for field in GUIDANCE:
                torch.testing.assert_close(
                    torch.tensor(getattr(mean, field)), torch.tensor(getattr(base, field)), rtol=1e-12, atol=1e-12
                )
            # One that does not sample them keeps them, bit for bit.
            assert all((getattr(plain.mean(), field) == getattr(base, field)).all() for field in GUIDANCE)


def test_a_batch_of_tables_is_solved_as_each_alone(tmp_path: Path) -> None:
    base, model = scaled(TABLES["mixed calls"]), classes()
    policy = moved(Policy(base, KIND["ours"]))
    samples = policy.sample(4, generator())
    c, noise = samples.coefficients(), unit_noise(range(4), model.shape, torch.float64)
    assert c.guidance_scale is not None and c.guidance_scale.shape == (*base.nodes.shape, 4)
    found = epd.solve(parallel(c), model.for_seeds(range(4)), noise, c.sigmas)
    for i in range(4):
        table = samples.table(i)
        assert table.scales_guidance and table != base
        one = epd.solve(table.rule(), model.for_seeds([i]), noise[i : i + 1], table.sigmas)
        torch.testing.assert_close(found[i : i + 1], one, rtol=1e-9, atol=1e-9)
    save_policy(policy, tmp_path / "policy.safetensors")
    assert load_policy(tmp_path / "policy.safetensors").mean() == policy.mean()


def test_only_where_the_config_says_so() -> None:
    assert kind_of(toy_refine_config()).log_normal == PARAMETRISATIONS["ours"].log_normal
    kind = kind_of(toy_refine_config(learn_guidance=True, policy="ours"))
    assert kind.log_normal == KIND["ours"].log_normal


def test_a_model_without_guidance_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    task = Task(limit_rows(classes(guidance=1.0)), {"size": lambda rollout: rollout.states.flatten(1).norm(dim=1)})
    for base, learn in ((TABLES["mixed calls"], True), (scaled(TABLES["mixed calls"]), False)):
        with pytest.raises(ValueError, match="is bound with guidance 1"):
            run_refine(task, base, toy_refine_config(learn_guidance=learn), tmp_path / "run")
    assert not (tmp_path / "run").exists()
