"""Train the larger embedded network `shapes-32` on the CPU: `python -m epd.experiments.train_shapes_32`.

A class-conditional `DiTTransformer2DModel` of 8 blocks and 256 tokens (v prediction, linear-beta schedule of 1,000
steps, class dropout 0.1, exponential moving average of the weights), on pictures that are drawn as it goes. Stopped, it
goes on from its last checkpoint. `shapes_32_report` judges it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from ..denoisers.shapes_32 import MODEL_FOLDER, SCALE, classes, paint
from .train_digits import loss_of, save, untrained
from .training import Training, TrainingConfig, train

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Everything that the trained weights depend on, beside the torch version. One thread: sums keep their order."""

    iterations: int = 5000
    learning_rate: float = 1.5e-3
    class_dropout: float = 0.1
    width: int = 64
    heads: int = 2
    layers: int = 8
    patch: int = 2
    threads: int = 1


def build(config: Config) -> DiTTransformer2DModel:
    """The untrained network."""
    return untrained(
        config.width, config.heads, config.layers, config.patch, channels=3, size=32, classes=len(classes())
    )


class Trainer(Training[DiTTransformer2DModel]):
    """Of this network, on fresh pictures."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.dropout = config.class_dropout
        super().__init__(config, build(config), torch.Generator().manual_seed(config.seed))

    def loss(self) -> Tensor:
        count, generator = self.config.batch, self.generator
        labels = torch.randint(len(classes()), (count,), generator=generator)
        clean = SCALE * (2 * paint(labels.tolist(), generator) - 1)
        dropped = torch.rand(count, generator=generator) < self.dropout
        return loss_of(self.parts, clean, labels.masked_fill(dropped, len(classes())), generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="model folder to write")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "shapes-32", help="folder of the checkpoint")
    for field in fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    out, run = given.pop("out"), given.pop("run")
    run.mkdir(parents=True, exist_ok=True)
    config = Config(**given)
    torch.set_num_threads(config.threads)
    trainer = Trainer(config)
    log = train(trainer, run / "checkpoint.safetensors")
    print(f"{sum(p.numel() for p in trainer.parts.parameters())} parameters -> {out}")
    save(trainer.average, out)
    (out / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
