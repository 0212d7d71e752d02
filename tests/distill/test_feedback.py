"""Learning feedback: what learns and what does not, resumed bit for bit, the file answers as training did."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import feedback, tiny_pipelines
from helpers.accelerating import traces
from helpers.forked import in_processes
from helpers.pipeline_families import FAMILIES
from safetensors.torch import load_file

import epd
from epd.accelerators.accelerate import accelerators_of
from epd.accelerators.feedback_block import load_feedback, read_trained
from epd.denoisers.digits import digits
from epd.denoisers.fingerprint import weights_digest
from epd.distill import feedback_run
from epd.distill.feedback import FeedbackTrainer
from epd.distill.feedback_config import FeedbackConfig
from epd.distill.feedback_plan import times_at
from epd.distill.feedback_run import checkpoint_of, state_of
from epd.distill.teacher import VALIDATION_SEEDS
from epd.runs.checkpoint import RunError, load_checkpoint, save_checkpoint
from epd.runs.processes import Workers
from epd.solvers.rules import euler


def small(**changes: Any) -> FeedbackConfig:  # noqa: ANN401
    values: dict[str, Any] = {
        "steps": 2, "begin": 1, "count": 1, "iterations": 3, "batch": 2, "pool": 4, "validation": 2, "lr": 1e-2,
        "validate_every": 2, "teacher": "heun", "teacher_multiplier": 2, "scale_lr": 1e-1,
    }  # fmt: skip
    return FeedbackConfig(**{**values, **changes})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", feedback.FAMILIES)
def test_at_first_nothing_but_the_scale_has_a_gradient_and_the_network_never(name: str) -> None:
    pipe = feedback.deep(name)
    network = tiny_pipelines.network(pipe)
    model = FAMILIES[name].model(pipe, 3.0)
    before, had = weights_digest([network]), traces(pipe)
    trainer = FeedbackTrainer(model, small(objective="steps", count=2))
    block = dict(trainer.feedback.block.named_parameters())
    first = torch.autograd.grad(trainer.loss(0), [trainer.feedback.scale, *block.values()], allow_unused=True)
    assert bool((first[0] != 0).all())
    assert all(gradient is None or not gradient.any() for gradient in first[1:])
    start = trainer.first()
    updates = list(trainer.updates(start))
    moved = [not torch.equal(updates[0].state.now[name], start.now[name]) for name in start.now]
    assert moved == [name == "scale" for name in start.now]
    assert any(not torch.equal(updates[1].state.now[f"block.{name}"], start.now[f"block.{name}"]) for name in block)
    assert weights_digest([network]) == before and traces(pipe) == had
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("objective", ["end", "steps"])
def test_it_learns_and_the_best_on_held_out_noise_is_kept(objective: str) -> None:
    model = digits()
    network = model.networks[0]
    before = weights_digest([network])
    config = small(
        objective=objective, steps=4, schedule="logsnr", teacher="dpmpp", teacher_multiplier=8, batch=4, pool=4,
        validation=4, iterations=8, scale_lr=6e-2, lr=3e-3,
    )  # fmt: skip
    trainer = FeedbackTrainer(model, config)
    plain = trainer.first().best_rmse
    assert plain == trainer.rmse(None)  # scales of 0
    before_training = trainer.loss(0).detach()
    *_, last = updates = list(trainer.updates())
    assert trainer.loss(0).detach() < 0.8 * before_training  # on the few samples that it saw
    measured = [update.validation for update in updates if update.validation is not None]
    assert len(measured) == 4 and last.state.best_rmse == min([plain, *measured])
    fed, trained = trainer.finished(last.state)
    assert trainer.rmse(trainer.loop) == last.state.best_rmse == trained.metrics["validation_rmse"] <= plain
    assert trained.metrics["plain_rmse"] == plain and trained.metrics["equal_steps"] == 6 == trainer.cost
    assert bool(fed.scale.any()) == (last.state.best_rmse < plain)
    assert weights_digest([network]) == before and accelerators_of(model) == ()


def test_a_model_whose_weights_are_not_frozen_gets_no_gradient_and_keeps_its_accelerators() -> None:
    model = epd.accelerate(digits(), epd.Reuse((5,)))
    model.networks[0].requires_grad_(True)
    trainer = FeedbackTrainer(model, small(objective="steps"))
    list(trainer.updates())
    assert all(p.grad is None for p in model.networks[0].parameters())
    assert accelerators_of(model) == (epd.Reuse((5,)),)


def test_the_times_are_those_that_the_network_is_told() -> None:
    model = digits()
    sigmas = ((1 - model.alphas_cumprod) / model.alphas_cumprod).sqrt()[[900, 500, 7]]  # type: ignore[operator,index]
    told = times_at(model, model.networks[0], sigmas)
    torch.testing.assert_close(told, torch.tensor([900.0, 500.0, 7.0]), atol=1e-2, rtol=0)
    pipe = feedback.deep("sd3")
    flow = times_at(FAMILIES["sd3"].model(pipe, 3.0), pipe.transformer, torch.tensor([1.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(flow, torch.tensor([1000.0, 250.0]), atol=1e-2, rtol=0)


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path: Path) -> None:
    trainer, path = FeedbackTrainer(digits(), small()), tmp_path / "checkpoint.safetensors"
    whole = list(trainer.updates())
    save_checkpoint(path, checkpoint_of(whole[1].state), {})
    kept = state_of(load_checkpoint(path)[0], path, trainer.feedback)
    (last,) = FeedbackTrainer(digits(), small()).updates(kept)
    for part in ("now", "first", "second", "best"):
        left, right = getattr(last.state, part), getattr(whole[2].state, part)
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert (last.loss, last.state.best_rmse) == (whole[2].loss, whole[2].state.best_rmse)
    other = FeedbackTrainer(digits(), small(count=2)).feedback
    with pytest.raises(RunError, match="scale has shape"):
        state_of(load_checkpoint(path)[0], path, other)


def test_a_run_leaves_a_file_that_answers_as_training_did(tmp_path: Path) -> None:
    model, out = digits(), tmp_path / "run"
    config = small(iterations=2)
    path = epd.distill_feedback(model, config, out)
    trained, table = read_trained(path), epd.Table.load(out / "solver.json")
    assert list(trained.sigmas) == table.sigmas.tolist() and (table.nfe, table.depth) == (2, 2)
    assert load_feedback(path, model.networks[0].transformer_blocks[1]).scale.any()  # type: ignore[index]
    seeds = range(VALIDATION_SEEDS, VALIDATION_SEEDS + 2)
    trainer = FeedbackTrainer(model, config)
    noise, made = epd.unit_noise(seeds, model.shape), []
    for rule in (table.rule(), euler()):
        epd.accelerate(model, epd.ILF(str(path)))
        with torch.no_grad(), epd.measure(model, counts=False) as measured:
            made.append(epd.solve(rule, model.for_seeds(seeds), noise, table.sigmas))
        assert measured.cost.blocks == 2 * trained.metrics["cost"] == 2 * 2 * 6 / 4
    assert torch.equal(*made)
    rmse = float((made[0] - trainer.validation(range(2))[1][-1]).double().square().mean().sqrt())
    assert math.isclose(rmse, trained.metrics["validation_rmse"], rel_tol=1e-6)
    with pytest.raises(ValueError, match="has feedback already"):
        epd.distill_feedback(model, config, tmp_path / "other")
    epd.decelerate(model)
    written = path.read_bytes()
    assert epd.distill_feedback(model, config, out, resume=True) == path and path.read_bytes() == written
    with pytest.raises(ValueError, match="iterations was 2, is 3"):
        epd.distill_feedback(model, small(iterations=3), out, resume=True)
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]


def test_parts_of_a_batch_are_the_batch() -> None:
    """Both objectives: the mean of the parts' losses, and of their gradients, is that of the whole."""
    for objective in ("end", "steps"):
        told = []
        for accumulate in (1, 2):
            trainer = FeedbackTrainer(digits(), small(objective=objective, batch=4, accumulate=accumulate))
            loss = torch.stack([trainer.loss(5, part) for part in range(accumulate)]).mean()
            (gradient,) = torch.autograd.grad(loss, [trainer.feedback.scale])
            told.append((loss.detach(), gradient))
        torch.testing.assert_close(told[0][0], told[1][0])
        torch.testing.assert_close(told[0][1], told[1][1], rtol=1e-5, atol=1e-9)


def learned(out: Path, cache: Path, **changes: Any) -> object:  # noqa: ANN401
    """A run in this process of several; which one it was."""
    os.environ["EPD_CACHE"] = str(cache)
    epd.distill_feedback(digits(), small(batch=4, accumulate=2, iterations=4, **changes), out)
    workers = Workers.of_accelerate()
    workers.end()
    return f"{workers.rank}/{workers.count}"


@pytest.mark.slow
def test_two_processes_learn_the_feedback_of_one(tmp_path: Path) -> None:
    """Of steps; of end points the command's own test does."""
    for count in (1, 2):
        said = in_processes(
            lambda n=count: learned(tmp_path / f"{n}", tmp_path / f"cache-{n}", objective="steps"), count
        )
        assert said == [f"{rank}/{count}" for rank in range(count)]
    one, two = (load_file(str(tmp_path / name / "feedback.safetensors")) for name in "12")
    assert one["scale"].any() and all(float((one[name] - two[name]).abs().max()) <= 1e-6 for name in one)
    assert (tmp_path / "1" / "solver.json").read_bytes() == (tmp_path / "2" / "solver.json").read_bytes()


@pytest.mark.slow
def test_a_failure_in_one_process_is_told_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((FeedbackTrainer, "_made"), (FeedbackTrainer, "loss"), (feedback_run, "state_of")):
        whole = getattr(owner, name)

        def broken(*arguments: object, whole: Any = whole) -> object:  # noqa: ANN401
            if os.environ.get("RANK") == "1":
                raise RuntimeError("broken here")
            return whole(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, broken)
            resumed = name == "state_of"
            if resumed:  # an interrupted run
                (tmp_path / "run" / "feedback.safetensors").unlink()
                (tmp_path / "run" / "solver.json").unlink()
            said = in_processes(
                lambda again=resumed: str(
                    epd.distill_feedback(digits(), small(batch=4, accumulate=2), tmp_path / "run", resume=again)
                )
            )
        assert said == [
            ["ProcessError", "process 1 of 2 failed: RuntimeError: broken here"], ["RuntimeError", "broken here"]
        ], name  # fmt: skip
        if name == "loss":
            epd.distill_feedback(digits(), small(batch=4, accumulate=2), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch": 5}, "exceeds pool = 4"),
        ({"batch": 3, "accumulate": 2}, "accumulate = 2 must divide batch = 3"),
        ({"feedback": (2,)}, "from 0 to 1"),
        ({"begin": 3, "count": 2}, "network of 4"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FeedbackTrainer(digits(), small(**changes))


def test_a_network_without_known_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="feedback is not known for UNet2DConditionModel"):
        FeedbackTrainer(FAMILIES["sd"].model(tiny_pipelines.build("sd"), 3.0), small())
