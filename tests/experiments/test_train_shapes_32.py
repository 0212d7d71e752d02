"""The training of the larger network: a stopped one goes on exactly, and what is saved is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from epd.denoisers import shapes_32 as embedded
from epd.denoisers.noise import unit_noise
from epd.experiments.train_digits import save
from epd.experiments.train_shapes_32 import Config, Trainer
from epd.experiments.training import train

SMALL = Config(iterations=4, batch=4, layers=1, width=16, heads=1, warmup=1)


def test_a_stopped_training_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trainer(SMALL)
    train(whole, tmp_path / "whole")
    advance = Trainer.advance

    def stopping(trainer: Trainer) -> float:
        if trainer.done == 2:
            raise KeyboardInterrupt
        return advance(trainer)

    monkeypatch.setattr(Trainer, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(Trainer(SMALL), tmp_path / "stopped")
    monkeypatch.undo()
    again = Trainer(SMALL)
    record = train(again, tmp_path / "stopped")["record"]
    assert [row["step"] for row in record] == [1, 2, 3, 4]
    assert all(torch.equal(value, whole.tensors()[name]) for name, value in again.tensors().items())
    with pytest.raises(ValueError, match="another configuration"):
        train(Trainer(Config(iterations=4, batch=5, layers=1, width=16, heads=1)), tmp_path / "stopped")


def test_what_is_saved_is_the_model_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(SMALL)
    for parameter in trainer.average.parameters():  # away from the zeros, to numbers that float16 holds
        parameter.copy_((parameter + 0.05 * torch.randn(parameter.shape)).half())
    x, labels = unit_noise([0, 1], (3, 32, 32)), torch.tensor([3, 24])
    with torch.no_grad():
        before = trainer.average(x, timestep=torch.tensor([10.0, 700.0]), class_labels=labels).sample
    save(trainer.average, tmp_path)
    monkeypatch.setattr(embedded, "MODEL_FOLDER", tmp_path)
    after = embedded.shapes_32_transformer()(x, timestep=torch.tensor([10.0, 700.0]), class_labels=labels).sample
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
