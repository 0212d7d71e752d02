"""Distillation: it learns, it repeats, it resumes bit for bit, several processes are one, bad input harms nothing."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from pydantic import ValidationError
from torch import Tensor

from epd import GaussianMixture, Table, solve
from epd.denoisers.noise import unit_noise
from epd.distill import adam
from epd.distill.config import DistillConfig
from epd.distill.objective import end_residual
from epd.distill.parameters import Parameters
from epd.distill.plan import make_plan
from epd.distill.run import run_distill
from epd.distill.state import State
from epd.distill.teacher import Teacher
from epd.distill.train import POOL_SEEDS, Trainer, Update, distill
from epd.runs.checkpoint import Checkpoint, RunError
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


@pytest.mark.parametrize("family", ["default", "epd", "epd-plugin", "s4s", "ld3", "amed"])
def test_every_family_learns(family: str) -> None:
    model, config = toy_mixture(), toy_config(family=family, calls=5)
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


@pytest.mark.parametrize("optimizer", ["gauss-newton", "adam"])
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
        parts = torch.tensor(more, dtype=torch.float64).split([len(c.noise) for c in run.held_out])
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


class Broken(GaussianMixture):
    """The toy model with a fault."""

    fault = "nan"

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        out = super().__call__(x, sigma)
        return out * math.nan if self.fault == "nan" else out[:, :, :1]

    def for_seeds(self, seeds: Sequence[int]) -> GaussianMixture:
        return self


@pytest.mark.parametrize(("fault", "error"), [("nan", FloatingPointError), ("shape", ValueError)])
@pytest.mark.parametrize("teacher", ["exact", "heun"])
def test_broken_networks_are_one_clear_error_and_leave_nothing(
    fault: str, error: type[Exception], teacher: str, cache: Path, tmp_path: Path
) -> None:
    model = Broken(torch.zeros(1, 1, 2, 2), 0.2, sigma_min=0.02, sigma_max=20.0)
    model.fault = fault
    with pytest.raises(error, match="NaN or infinity|shape"):
        run_distill(model, toy_config(teacher=teacher), tmp_path / "run")
    assert not list(cache.rglob("*.safetensors")) and not (tmp_path / "run" / "solver.json").exists()


def run(out: Path, **changes: object) -> Path:
    resume = bool(changes.pop("resume", False))
    path = run_distill(toy_mixture(), toy_config(family="epd", **changes), out, resume=resume)
    assert path is not None
    return path


def test_a_run_folder_holds_everything(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    table = Table.load(run(tmp_path / "a"))
    assert table.provenance.model == "toy" and table.provenance.config["family"] == "epd"
    lines = (tmp_path / "a" / "history.jsonl").read_text().splitlines()
    events = EventAccumulator(str(tmp_path / "a" / "tb")).Reload()
    tags = events.Tags()["scalars"]
    assert {"losses/train_rmse", "losses/validation_rmse", "nodes/step1/0", "weights/step0/1", "sigmas/step0/0"} <= set(
        tags
    )
    assert [e.step for e in events.Scalars("losses/train_rmse")] == list(range(1, len(lines) + 1))


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    before = run(tmp_path / "a").read_bytes()
    with pytest.raises(RunError, match="already holds a run: add --resume"):
        run(tmp_path / "a")
    assert run(tmp_path / "a", resume=True).read_bytes() == before  # finished: left as it is
    with pytest.raises(RunError, match="config.seed was 0, is 1"):
        run(tmp_path / "a", seed=1, resume=True)
    assert (tmp_path / "a" / "solver.json").read_bytes() == before


@pytest.mark.parametrize("lost", ["checkpoint.safetensors", "config.json", "both"])
def test_resume_with_a_missing_file_never_overwrites_a_finished_table(tmp_path: Path, lost: str) -> None:
    """A lost checkpoint, a lost identity, a lost pair, each with the same options and with others."""
    before = run(tmp_path / "a").read_bytes()
    for name in ("checkpoint.safetensors", "config.json") if lost == "both" else (lost,):
        (tmp_path / "a" / name).unlink()
    files = sorted((p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir() if p.is_file())
    message = "nothing says which run this is: choose another --out" if lost == "both" else "config.seed was 0, is 1"
    with pytest.raises(RunError, match=message):
        run(tmp_path / "a", seed=1, resume=True)
    if lost == "both":
        with pytest.raises(RunError, match=message):
            run(tmp_path / "a", resume=True)
    else:
        assert run(tmp_path / "a", resume=True).read_bytes() == before
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir() if p.is_file()) == files


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "nan", "text"])
def test_a_damaged_checkpoint_is_one_clear_error_that_asks_for_no_deletion(tmp_path: Path, damage: str) -> None:
    before = run(tmp_path / "a").read_bytes()
    path = tmp_path / "a" / "checkpoint.safetensors"
    data = path.read_bytes()
    nan = torch.tensor(math.nan, dtype=torch.float64).numpy().tobytes()
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "noise": bytes(255 - b for b in data),
            "empty": b"",
            "nan": data[:-8] + nan,
            "text": b"{}" * 500,
        }[damage]
    )
    assert run(tmp_path / "a", resume=True).read_bytes() == before  # finished: nobody needs the checkpoint
    (tmp_path / "a" / "solver.json").unlink()
    with pytest.raises(RunError, match="damaged .*another --out") as error:
        run(tmp_path / "a", resume=True)
    assert "delete" not in str(error.value)
    assert not (tmp_path / "a" / "solver.json").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from epd.runs import follow

    whole = run(tmp_path / "whole").read_bytes()
    real, written = follow.save_checkpoint, []

    def full(path: Path, checkpoint: Checkpoint, identity: Mapping[str, object]) -> None:
        written.append(path)
        if len(written) > 1:
            monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        real(path, checkpoint, identity)

    monkeypatch.setattr(follow, "save_checkpoint", full)
    monkeypatch.setattr(follow, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(OSError, match="could not write .* what was there before is unchanged"):
        run(tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    assert not list((tmp_path / "a").glob(".*")) and not (tmp_path / "a" / "solver.json").exists()
    assert run(tmp_path / "a", resume=True).read_bytes() == whole


def test_dry_run_computes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert run_distill(toy_mixture(), toy_config(), tmp_path / "a", dry_run=True) is None
    text = capsys.readouterr().out
    assert "3 sequential calls" in text and "training evaluations" in text and "seconds" in text
    assert not (tmp_path / "a").exists() and not cache.exists()


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


class Given(Workers):
    """Gives the optimiser gradients from a list instead of a batch's."""

    def __init__(self, gradients: list[Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "gradients", iter(gradients))

    def mean(self, parts: int, size: int, work: Callable[[int], Tensor]) -> Tensor:
        return torch.cat([next(self.gradients), torch.zeros(1, dtype=torch.float64)])  # type: ignore[attr-defined]


def steps_of_adam(gradients: list[Tensor], clip: float) -> list[State]:
    """The states of Adam before and after updates with these gradients."""
    config = toy_config(family="amed", calls=4, schedule="polynomial", optimizer="adam", clip=clip)
    plan = make_plan(toy_mixture(), config)

    class Run:
        workers: Workers = Given(gradients)
        config, residual, iterations = plan.config, staticmethod(end_residual()), 100

        def parameters(self, state: State) -> Parameters:
            return Parameters.of(plan.tables[0], plan.learn)

    none = torch.zeros_like(gradients[0])
    states = [State(0, 0, 0, none, none, math.inf, 0, 0, 0.0, torch.stack([none, none]))]
    for _ in gradients:
        moved = adam.update(Run(), states[-1], 1, lambda i: pytest.fail("not asked"), exploring=False)
        iteration = states[-1].iteration + 1
        states.append(dataclasses.replace(states[-1], iteration=iteration, vector=moved.vector, moments=moved.moments))
    return states


def test_an_outlier_among_gradients_is_clipped_to_the_usual_scale() -> None:
    """Usual norm 1, then 50 times as much: the second moment hears of 1.4 squared, in the outlier's direction."""
    usual, outlier = torch.tensor([0.6, 0.8], dtype=torch.float64), torch.tensor([30.0, -40.0], dtype=torch.float64)
    before, after = steps_of_adam([usual] * 20 + [outlier], clip=1.4)[-2:]
    heard = (after.moments[1] - 0.99 * before.moments[1]) / 0.01
    assert torch.allclose(heard, (1.4 * outlier / 50) ** 2, rtol=1e-12)
    free = steps_of_adam([usual] * 20 + [outlier / 50 * 1.39], clip=1.4)[-1]
    assert torch.allclose((free.moments[1] - 0.99 * before.moments[1]) / 0.01, (1.39 * outlier / 50) ** 2, rtol=1e-12)


def test_adam_does_not_depend_on_the_scale_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(2, generator=generator, dtype=torch.float64).exp() for _ in range(30)]
    small, large = (steps_of_adam([k * g for g in gradients], clip=1.4)[-1].vector for k in (1.0, 1e4))
    assert torch.allclose(small, large, rtol=1e-6)


def test_gradients_of_zero_do_not_stop_adam_for_good() -> None:
    states = steps_of_adam([torch.zeros(2, dtype=torch.float64)] * 3 + [torch.ones(2, dtype=torch.float64)] * 2, 1.4)
    assert torch.equal(states[3].vector, states[0].vector) and bool((states[-1].vector < states[3].vector).all())
