"""Whitened coordinates: equal steps in any of them move the ends of trajectories by as much."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.policies import generator, moved
from helpers.toy_refine import toy_refine_config, toy_table, toy_task
from torch import Tensor

from epd.denoisers.noise import unit_noise
from epd.rl.parametrisation import PARAMETRISATIONS
from epd.rl.policy import Policy
from epd.rl.policy_file import load_policy, save_policy
from epd.rl.refine import kind_of, policy_of, refine
from epd.rl.run import refined
from epd.rl.structure import Structure
from epd.rl.whitening import DAMPING, SAMPLES, whitening
from epd.solvers.parallel import parallel
from epd.solvers.solve import solve

KIND = PARAMETRISATIONS["whitened"]


def curvature(structure: Structure, mean: Tensor) -> Tensor:
    """E |dx_N / du|^2 / E |x_N|^2, (D, D), by autograd, on the samples that the mix was made on."""
    task, first = toy_task(), len(structure.shares)
    draws = task.draw(SAMPLES, 1, False, torch.Generator().manual_seed(-2))
    noise = unit_noise(draws.noises, task.model.shape, torch.float64)

    def ends(normals: Tensor) -> Tensor:
        c = structure.coefficients(torch.cat([mean[:first], normals]).expand(SAMPLES, -1))
        return solve(parallel(c), task.model.for_seeds(draws.conditions), noise, c.sigmas).flatten()

    normals = mean[first:]
    jacobian = torch.autograd.functional.jacobian(ends, normals)
    assert isinstance(jacobian, Tensor)
    return jacobian.T @ jacobian / ends(normals).square().sum()


def test_each_coordinate_moves_the_ends_alone_and_none_by_more_than_its_share() -> None:
    base, task = toy_table(), toy_task()
    plain = Policy(base, KIND)
    start = torch.cat([plain.structure.shares, torch.zeros_like(plain.structure.std)])
    mix = whitening(task, base, KIND, 0, torch.float64)
    values = torch.linalg.eigvalsh(curvature(plain.structure, start)).clamp_min(0)
    assert float(values[-1]) > 100 * DAMPING > float(values[0])  # the numbers of a table pull on each other
    whitened = curvature(Policy(base, KIND, mix=mix).structure, start)
    expected = torch.diag(values / (values + DAMPING) / len(values))
    torch.testing.assert_close(whitened, expected, rtol=0, atol=2e-3 / len(values))


def test_a_policy_of_a_run_is_the_whitened_one_and_begins_at_its_base() -> None:
    base, task = toy_table(), toy_task()
    config = toy_refine_config(policy="whitened", std=0.1)
    policy = policy_of(task, base, config)
    assert policy.structure.kind == kind_of(config) and policy.structure.kind.std == 0.1
    torch.testing.assert_close(torch.tensor(policy.mean().sigmas), torch.tensor(base.sigmas), rtol=1e-12, atol=0)
    assert torch.equal(policy.mix, policy_of(task, base, config).mix)  # a resumed run makes the same
    assert policy_of(task, base, toy_refine_config()).mix is None


def test_a_sampled_schedule_is_one_however_far_it_is_moved() -> None:
    policy = moved(Policy(toy_table(), KIND), by=30.0)
    samples = policy.sample(200, generator())
    sigmas = samples.coefficients().sigmas
    assert bool((sigmas.diff(dim=0) < 0).all())
    assert torch.equal(sigmas[[0, -1]], torch.tensor(toy_table().sigmas)[[0, -1], None].expand(-1, 200))


def test_a_mix_is_kept_in_the_file_and_part_of_what_policies_share(tmp_path: Path) -> None:
    base = toy_table()
    mix = whitening(toy_task(), base, KIND, 0, torch.float64)
    policy = moved(Policy(base, KIND, mix=mix))
    save_policy(policy, tmp_path / "p.safetensors")
    again = load_policy(tmp_path / "p.safetensors")
    assert torch.equal(again.mix, mix)
    assert torch.equal(policy.sample(5, generator()).values, again.sample(5, generator()).values)
    assert policy.mean() == again.mean() and float(policy.kl(again).detach()) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="one base, parametrisation and mix"):
        policy.kl(Policy(base, KIND))
    with pytest.raises(ValueError, match=r"mix has shape \(2, 2\), needed \(\d+, \d+\)"):
        Policy(base, KIND, mix=torch.eye(2, dtype=torch.float64))


def test_a_run_goes_on_to_the_same_bits_and_gains() -> None:
    base, task = toy_table(), toy_task()
    config = toy_refine_config(policy="whitened", std=0.2, lr=0.02, steps=8, evaluate_every=4, held_out=128)
    whole = list(refine(task, base, config))
    *_, again = refine(task, base, config, whole[3].state)
    assert torch.equal(again.state.vector, whole[-1].state.vector)
    last = whole[-1].evaluation
    assert last is not None and last.means["closeness"] > last.given["closeness"]
    table = refined(task, base, config, whole[-1].state)
    assert table.provenance.parent == base.digest and table.provenance.config["policy"] == "whitened"
