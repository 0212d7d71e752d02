"""The training of the embedded text-to-image network: what it learns from, that it resumes, what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from epd.denoisers.noise import unit_noise
from epd.denoisers.shapes_verifier import verify
from epd.denoisers.shapes_world import parse, prompts, scenes
from epd.experiments import train_shapes
from epd.experiments.shapes_report import interval
from epd.pipelines import shapes as embedded

SMALL = train_shapes.Config(iterations=4, batch=4, layers=1, heads=1, warmup=1)


def test_every_word_is_one_token() -> None:
    tokens = train_shapes.tokenizer()
    for scene in scenes():
        read = tokens(scene.prompt).input_ids
        assert len(read) == len(scene.prompt.split()) + 2 <= train_shapes.TOKENS
        assert tokens.decode(read[1:-1]) == scene.prompt
    assert tokens("").input_ids == [len(tokens) - 2, len(tokens) - 1]


def test_it_learns_from_training_prompts_alone_and_from_pictures_that_show_them() -> None:
    trainer = train_shapes.Trainer(SMALL)
    texts = [trainer.tokenizer.decode(row, skip_special_tokens=True) for row in trainer.tokens]
    assert texts == [*prompts("train"), ""]
    latents, number = zip(*(trainer.examples() for _ in range(100)), strict=True)
    asked = [texts[n] for n in torch.cat(number).tolist()]
    assert bool((verify(torch.cat(latents) / 4 + 0.5, asked).all == 1).all())
    assert sum(parse(prompt).relation is not None for prompt in asked) == pytest.approx(240, abs=30)  # six of ten


def test_a_stopped_training_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, record = train_shapes.train(SMALL, tmp_path / "whole")
    assert [row["step"] for row in record["record"]] == [1, 2, 3, 4]
    advance = train_shapes.Trainer.advance

    def stopping(trainer: train_shapes.Trainer) -> float:
        if trainer.done == 2:
            raise KeyboardInterrupt
        return advance(trainer)

    monkeypatch.setattr(train_shapes.Trainer, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_shapes.train(SMALL, tmp_path / "stopped")
    monkeypatch.undo()
    again, _ = train_shapes.train(SMALL, tmp_path / "stopped")
    assert again.tensors().keys() == whole.tensors().keys()
    assert all(torch.equal(value, whole.tensors()[name]) for name, value in again.tensors().items())
    with pytest.raises(ValueError, match="another configuration"):
        train_shapes.train(train_shapes.Config(), tmp_path / "stopped")


def test_training_and_pipeline_evaluate_the_same_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_shapes.Trainer(SMALL)
    for parameter in trainer.average.parameters():  # away from the zeros, to numbers that float16 holds
        parameter.copy_((parameter + 0.05 * torch.randn(parameter.shape)).half())
    train_shapes.save(trainer, tmp_path)
    monkeypatch.setattr(embedded, "MODEL_FOLDER", tmp_path)
    asked = [prompts("train")[3], prompts("held-out")[5]]
    x, level = unit_noise([0, 1], (3, 16, 16)), torch.tensor([0.3, 0.9])
    tokens = trainer.tokenizer(asked, padding="max_length", max_length=10, return_tensors="pt").input_ids
    with torch.no_grad():
        velocity = train_shapes.velocity(trainer.average.float(), x, level, torch.as_tensor(tokens))
        denoised = embedded.shapes(asked).for_seeds([0, 1])(x, level)
    assert float(velocity.std()) > 0.1
    torch.testing.assert_close(denoised, x - level[:, None, None, None] * velocity, rtol=0, atol=1e-5)


def test_wilsons_interval() -> None:
    # The ends p solve (share - p)^2 = z^2 p (1 - p) / n.
    for share, count in [(0.9, 400), (0.0, 50), (1.0, 10)]:
        for end in interval(share, count):
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count, abs=1e-4)
