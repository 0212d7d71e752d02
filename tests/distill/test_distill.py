"""Distillation: it learns, it repeats, it resumes bit for bit, several processes are one, bad input harms nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from pydantic import ValidationError
from torch import Tensor

from epd import GaussianMixture, Table, solve
from epd.denoisers.noise import unit_noise
from epd.distill.config import DistillConfig
from epd.distill.plan import make_plan
from epd.distill.teacher import POOL_SEEDS, Teacher
from epd.distill.train import Trainer, distill
from epd.distill.update import Update
from epd.runs.processes import Workers
from epd.solvers.exact import converged


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def updates(config: DistillConfig, model: GaussianMixture | None = None, count: int | None = None) -> list[Update]:
    model = model or toy_mixture()
    out = []
    for update in distill(model, make_plan(model, config)):
        out.append(update)
        if len(out) == count:
            break
    return out


def rmse(table: Table, model: GaussianMixture) -> float:
    noise = unit_noise(range(500), (1, 2, 2), torch.float64)
    end = converged(model, noise, table.sigmas[[0, -1]], 1e-6, 1e-6)[-1]
    return float((solve(table.rule(), model, noise, table.sigmas) - end).square().mean().sqrt())


@pytest.mark.parametrize("family", ["dense", "two-call", "epd", "epd-plugin", "s4s", "ld3", "amed"])
def test_every_family_learns(family: str) -> None:
    model, config = toy_mixture(), toy_config(family=family, calls=5, **{"points": 1} if family == "dense" else {})
    plan = make_plan(model, config)
    last = list(distill(model, plan))[-1]
    start = min(rmse(table, model) for table in plan.tables)
    # ld3 has three interior sigmas to learn and little to gain; everything else halves the error at least.
    assert rmse(last.table, model) < (0.97 if family == "ld3" else 0.6) * start
    assert last.table.depth == 5 and last.table.provenance.metrics["validation_rmse"] == last.state.best_rmse


def test_flow_paths_learn() -> None:
    model, config = toy_mixture("flow"), toy_config(calls=4)
    last = updates(config, model)[-1]
    assert rmse(last.table, model) < 0.5 * rmse(make_plan(model, config).tables[0], model)


@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("points", [1, 2])
def test_soap_learns_a_dense_table(path: Literal["ve", "flow"], points: int) -> None:
    model = toy_mixture(path)
    short = {"iterations": 80, "screening": 5, "accumulate": 1}
    config = toy_config(family="dense", calls=4, points=points, optimizer="soap", **short)
    last = updates(config, model)[-1]
    starts = make_plan(model, config).tables
    analytic, asking = ((0, 1, 1, 1, 1), 4 * points), ((1, 1, 1, 1), 1 + 3 * points)  # the first call has no memory
    assert last.table.depth == 4 and (last.table.calls, last.table.nfe) in (analytic, asking)
    assert {start.calls for start in starts} == ({analytic[0]} if path == "ve" else {analytic[0], asking[0]})
    assert rmse(last.table, model) < 0.3 * rmse(starts[-1], model)
    assert rmse(last.table, model) < 0.8 * min(rmse(start, model) for start in starts)


@pytest.mark.parametrize("objective", ["end", "steps", "both"])
def test_adam_learns_with_every_objective(objective: str) -> None:
    config = toy_config(family="epd", calls=5, optimizer="adam", objective=objective, iterations=60, screening=5)
    model = toy_mixture()
    last = updates(config)[-1]
    assert rmse(last.table, model) < 0.8 * rmse(make_plan(model, config).tables[0], model)


def test_checkpointed_activations_change_nothing() -> None:
    plain = toy_config(family="epd", optimizer="adam", iterations=5)
    a, b = updates(plain)[-1], updates(plain.model_copy(update={"checkpointing": True}))[-1]
    assert torch.equal(a.state.vector, b.state.vector)


def test_accumulation_parts_change_rounding_only() -> None:
    a, b = (updates(toy_config(optimizer="adam", accumulate=n, iterations=5))[-1] for n in (1, 4))
    assert torch.allclose(a.state.vector, b.state.vector, rtol=1e-8, atol=1e-8)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    a, b, c = (updates(toy_config(seed=s, iterations=3))[-1].state.vector for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("optimizer", ["gauss-newton", "adam", "soap"])
def test_resuming_from_any_update_gives_the_same_bits(optimizer: str) -> None:
    """Screening of several starts included (family epd)."""
    config = toy_config(family="epd", optimizer=optimizer, iterations=4)
    model = toy_mixture()
    plan = make_plan(model, config)
    whole = list(distill(model, plan))
    assert len(whole) == plan.total == len(plan.tables) * 2 + 4 and len(plan.tables) > 1
    for update in whole[:-1]:
        rest = list(distill(model, plan, update.state))
        assert len(rest) == len(whole) - update.iteration
        assert rest[-1].table == whole[-1].table


def test_gauss_newton_ends_with_the_best_on_held_out_noise() -> None:
    found = updates(toy_config(family="epd"))
    measured = [u.validation for u in found if u.validation is not None]
    assert found[-1].state.best_rmse <= min(measured)
    assert torch.equal(found[-1].state.vector, found[-1].state.best)


@pytest.mark.parametrize("worse", [False, True])
def test_adam_ends_with_its_last_numbers_unless_they_are_worse(worse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_worse", lambda self, state: worse)
    rising = (1.0 + i for i in range(1000))
    monkeypatch.setattr(Trainer, "_validate", lambda self, state: next(rising))
    *earlier, last = updates(toy_config(family="epd", optimizer="adam", iterations=6, screening=5, validate_every=2))
    measured = [u.validation for u in earlier if u.validation is not None] + [last.validation]
    assert last.validation == max(m for m in measured if m is not None)
    assert last.state.best_rmse == (1.0 if worse else last.validation)
    assert last.table.provenance.metrics["validation_rmse"] == last.state.best_rmse
    assert torch.equal(last.state.vector, last.state.best)
    assert torch.equal(last.state.vector, earlier[-1].state.best) == worse


def test_worse_means_beyond_chance(cache: Path) -> None:
    """Against the definition and its two ends: one sample gone astray is chance, all of them a little worse are not."""
    model, config = toy_mixture(), toy_config(family="epd", optimizer="adam", iterations=20, screening=5)
    plan = make_plan(model, config)
    *_, last = distill(model, plan)
    run = Trainer(model, plan, None, cache, Workers())
    good, count = last.state, config.validation

    def squares(vector: Tensor) -> Tensor:
        c = run.parameters(good).coefficients(vector)
        return torch.cat([run._squares(c, i) for i in range(len(run.held_out))])

    assert not run._worse(good)
    for size in (1e-4, 1e-3, 1e-2, 0.1, 1.0):
        for seed in range(6):
            move = size * torch.randn(good.vector.shape, generator=torch.Generator().manual_seed(seed)).double()
            moved = dataclasses.replace(good, vector=good.vector + move)
            more = squares(moved.vector) - squares(good.best)
            assert run._worse(moved) == bool(more.mean() > 2 * more.std(correction=0) / count**0.5)
    outcomes = {"one": [0.9] + [0.0] * (count - 1), "all": [0.01 + 1e-4 * (i % 7) for i in range(count)]}
    for name, more in outcomes.items():
        parts = torch.tensor(more, dtype=torch.float64).split([len(places) for places in run.held_out])
        answers = iter([t for part in parts for t in (part, torch.zeros_like(part))])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_squares", lambda *_, answers=answers: next(answers))
            assert run._worse(good) == (name == "all")


def test_patience_stops_early() -> None:
    config = toy_config(family="amed", calls=4, schedule="polynomial", iterations=60, patience=3)
    found = updates(config)
    assert len(found) < 60 and found[-1].state.stale == 3
    assert not list(distill(toy_mixture(), make_plan(toy_mixture(), config), found[-1].state))  # and stays stopped


def test_teachers_are_solved_once_and_belong_to_their_network(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, config = toy_mixture(), toy_config()
    sigmas = torch.tensor([20.0, 0.02], dtype=torch.float64)
    teacher = Teacher(model, config, sigmas, cache)
    seeds = list(range(POOL_SEEDS, POOL_SEEDS + 300))
    first = teacher.states(seeds)
    files = sorted(cache.rglob("*.safetensors"))
    stamps = [f.stat().st_mtime_ns for f in files]
    assert torch.equal(teacher.states(seeds[40:70]), first[:, 40:70])
    assert [f.stat().st_mtime_ns for f in files] == stamps and len(files) == 2
    exact = converged(model, unit_noise(seeds, model.shape, torch.float64), sigmas, 1e-7, 1e-7)[1:]
    assert float((first - exact).square().mean().sqrt()) < 2e-3
    other = GaussianMixture(torch.ones(1, 1, 2, 2), 0.3, sigma_min=0.02, sigma_max=20.0, name="toy")  # same name
    assert not torch.allclose(Teacher(other, config, sigmas, cache).states(seeds), first, atol=1e-2)
    assert [f.stat().st_mtime_ns for f in files] == stamps and len(list(cache.rglob("*.safetensors"))) == 4
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert torch.allclose(teacher.states(seeds), first) and "unreadable" in caplog.text


@pytest.mark.parametrize("name", ["heun", "dpm2", "ipndm", "dpmpp", "euler"])
def test_rules_as_teachers_pass_through_the_students_sigmas(name: str, cache: Path) -> None:
    model = toy_mixture()
    sigmas = torch.tensor([20.0, 5.0, 0.5, 0.02], dtype=torch.float64)
    teacher = Teacher(model, toy_config(teacher=name, teacher_multiplier=16), sigmas, cache)
    assert torch.equal(teacher.fine_sigmas()[::16], sigmas)
    states, noise = teacher.states(range(8)), teacher.noise(range(8))
    assert states.shape == (3, 8, 1, 2, 2)
    exact = converged(model, noise, sigmas, 1e-6, 1e-6)[1:]
    assert float((states - exact).square().mean().sqrt()) < (0.3 if name == "euler" else 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 512}, "exceeds pool"),
        ({"accumulate": 3}, "must divide"),
        ({"optimizer": "gauss-newton", "objective": "steps"}, "needs objective = 'end'"),
        ({"optimizer": "gauss-newton", "precision": "bf16"}, "half-precision"),
        ({"objective": "steps", "optimizer": "adam", "learn": ("sigmas",)}, "fixed sigmas"),
        ({"nums_steps": 3}, "nums_steps"),
        ({"calls": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        toy_config(**changes)


def test_an_initial_table_of_other_calls_or_with_nothing_to_learn_is_refused() -> None:
    model = toy_mixture()
    table = make_plan(model, toy_config(calls=5)).tables[0]
    with pytest.raises(ValueError, match="5 sequential calls, calls = 3"):
        make_plan(model, toy_config(calls=3), table)
    with pytest.raises(ValueError, match="nothing to learn"):
        make_plan(model, toy_config(calls=3, family="s4s", learn=("nodes",)))
    with pytest.raises(ValueError, match="nothing to learn: .* give memory = 1 or more"):
        make_plan(model, toy_config(calls=4, family="epd", step_calls=1))


def test_a_child_names_its_parent() -> None:
    model, config = toy_mixture(), toy_config(iterations=2)
    parent = updates(config)[-1].table
    child = list(distill(model, make_plan(model, config, parent)))[-1].table
    assert child.provenance.parent == parent.digest and dataclasses.asdict(child.provenance)["model"] == "toy"


def test_teachers_of_other_conditions_are_not_reused(cache: Path) -> None:
    """Conditions that differ for one late seed only: its trajectories are solved again."""

    class Shifted(GaussianMixture):
        odd: int | None = None

        def for_seeds(self, seeds: Sequence[int]) -> GaussianMixture:
            return Shifted(self.means.reshape(-1, 1, 2, 2) + (self.odd in seeds), 0.5, name="toy")

    config, sigmas = toy_config(), torch.tensor([20.0, 0.02], dtype=torch.float64)
    plain, odd = (Shifted(torch.zeros(2, 1, 2, 2), 0.5, name="toy") for _ in range(2))
    odd.odd = 40
    first = Teacher(plain, config, sigmas, cache).states(range(64))
    assert not torch.allclose(Teacher(odd, config, sigmas, cache).states(range(64)), first, atol=0.1)
