"""Teachers: how finely rules are solved, and what a cached trajectory is proven by."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_pipelines
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor, nn

from epd import GaussianMixture
from epd.denoisers.fingerprint import Dependencies
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.preconditioning import edm
from epd.distill.plan import make_plan
from epd.distill.run import RunError, _identity, run_distill
from epd.distill.teacher import Teacher
from epd.distill.train import Trainer
from epd.pipelines.denoiser import from_pipeline
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


class Counting(GaussianMixture):
    """The toy model, counting the rows that it is asked for."""

    rows = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows += len(x)
        return super().__call__(x, sigma)


class Opaque(Counting):
    """One that cannot say what it depends on."""

    def depends_on(self) -> Dependencies | None:  # type: ignore[override]
        return None


def mixture(kind: type[Counting], shift: float = 0.0) -> Counting:
    means = toy_mixture().means.reshape(-1, 1, 2, 2) + shift
    return kind(means, 0.5, sigma_min=0.02, sigma_max=20.0, name="toy")


@pytest.mark.parametrize(("kind", "rows"), [(Counting, 4), (Opaque, 384)])
def test_a_warm_cache_is_proven_by_a_handful_of_evaluations(kind: type[Counting], rows: int, tmp_path: Path) -> None:
    """256 + 128 trajectories: once each they were evaluated when prepared, and once when read."""
    config = toy_config()
    cold, warm = mixture(kind), mixture(kind)
    first = Trainer(cold, make_plan(cold, config), None, tmp_path, Workers())
    assert cold.rows > 10_000
    plan = make_plan(warm, config)
    warm.rows = 0  # what choosing an optimiser takes is no proof of a cache
    second = Trainer(warm, plan, None, tmp_path, Workers())
    assert all(map(torch.equal, first.pool(range(256)), second.pool(range(256)))) and warm.rows == rows


@pytest.mark.parametrize("kind", [Counting, Opaque])
def test_trajectories_of_another_network_of_the_same_name_are_not_taken(
    kind: type[Counting], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = torch.tensor([20.0, 0.02], dtype=torch.float64)
    one, other = (Teacher(mixture(kind, shift), toy_config(), grid, tmp_path) for shift in (0.0, 0.01))
    first, second = one.states(range(300)), other.states(range(300))
    assert float((second - first).mean()) == pytest.approx(0.01, rel=0.1)
    assert ("is of another network" in caplog.text) == (kind is Opaque)


def network(strength: dict[str, float]) -> NetworkDenoiser:
    """A network with an adapter whose strength is no weight."""
    layer = nn.Linear(4, 4, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.eye(4) / 2)

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        return torch.tanh(layer(x.flatten(1)) * strength["adapter"] + rows["label"][:, None]).reshape(x.shape)

    return NetworkDenoiser(
        call, edm(0.5), (1, 2, 2), 0.02, 20.0, name="toy", networks=(layer,), condition="label",
        seed_rows=lambda seeds: torch.tensor([(seed // 100) % 2 * strength["late"] for seed in seeds]),
    )  # fmt: skip


@pytest.mark.parametrize("changed", ["adapter", "late", "weight", "guidance"])
def test_whatever_changes_a_network_its_trajectories_are_solved_again(changed: str, tmp_path: Path) -> None:
    """An adapter's strength, a label of late seeds only, one weight of 16, the guidance."""
    grid = torch.tensor([20.0, 0.02], dtype=torch.float64)
    strength = {"adapter": 1.0, "late": 1.0}
    model, seeds = network(strength), range(300)
    first = Teacher(model, toy_config(), grid, tmp_path).states(seeds)
    if changed == "weight":
        weight = next(model.networks[0].parameters())
        weight[1, 2] = 0.25
    elif changed == "guidance":
        model = replace(model, guidance=2.0, null={"label": torch.zeros(1)})
    else:
        strength[changed] = 1.5
    second = Teacher(model, toy_config(), grid, tmp_path).states(seeds)
    fresh = Teacher(model, toy_config(), grid, tmp_path / "fresh").states(seeds)
    assert torch.equal(second, fresh) and not torch.allclose(first[:, 100:200], fresh[:, 100:200], atol=1e-3)


def test_a_changed_second_expert_changes_cache_and_run(tmp_path: Path) -> None:
    """Wan 2.2: the expert of the low noise levels is never asked at the middle one."""
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    stock, second = tiny_pipelines.build("wan"), tiny_pipelines.build("wan", seed=5)
    pipe = WanPipeline(**stock.components | {"transformer_2": second.transformer}, boundary_ratio=0.9)
    pipe.set_progress_bar_config(disable=True)
    grid = torch.tensor([1.0, 0.01], dtype=torch.float64)

    def known() -> tuple[str, object]:
        model = from_pipeline(pipe, height=16, width=16, num_frames=5, options={"max_sequence_length": 16})
        identity = _identity(model, make_plan(model, toy_config(optimizer="gauss-newton")), None)
        return Teacher(model, toy_config(), grid, tmp_path).key(), identity["weights"]

    before = known()
    assert known() == before
    with torch.no_grad():
        next(iter(pipe.transformer_2.parameters())).mul_(1.01)
    after = known()
    assert after[0] != before[0] and after[1] != before[1]


def test_a_run_is_not_continued_with_other_features_or_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    config = toy_config(family="epd", schedule="polynomial", feature_weight=1.0, iterations=2)
    layer = nn.Linear(4, 3, dtype=torch.float64)
    features = nn.Sequential(nn.Flatten(), layer).requires_grad_(False)
    run_distill(network({"adapter": 1.0, "late": 0.0}), config, tmp_path / "run", features=features)
    layer.weight[0, 0] += 1
    with pytest.raises(RunError, match="features was"):
        run_distill(network({"adapter": 1.0, "late": 0.0}), config, tmp_path / "run", resume=True, features=features)
    layer.weight[0, 0] -= 1
    other = network({"adapter": 1.0, "late": 0.0})
    next(other.networks[0].parameters())[1, 2] = 0.25
    with pytest.raises(RunError, match="weights was"):
        run_distill(other, config, tmp_path / "run", resume=True, features=features)


def test_a_pipe_in_the_place_of_a_cached_block_is_solved_again_and_not_waited_for(tmp_path: Path) -> None:
    model = toy_mixture()
    teacher = Teacher(model, toy_config(), torch.tensor([20.0, 2.0, 0.02], dtype=torch.float64), tmp_path)
    span = teacher.span(0)
    solved = teacher.states([0])
    teacher.path(*span).unlink()
    os.mkfifo(teacher.path(*span))
    assert torch.equal(teacher.states([0]), solved)
    assert teacher.path(*span).is_file()
