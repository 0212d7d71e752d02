"""Train the embedded `digits` network on the CPU: `python -m epd.experiments.train_digits --out FOLDER`.

A class-conditional `DiTTransformer2DModel` (v prediction, linear-beta schedule of 1,000 steps, class dropout 0.1,
exponential moving average of the weights). 200 images are held out, so that memorising would show in their loss.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from ..denoisers.digits import MODEL_FOLDER, digits_data, held_out
from ..denoisers.timesteps import linear_beta

NULL_CLASS = 10


@dataclass(frozen=True)
class Config:
    """Everything that the trained weights depend on, beside the torch version. One thread: sums keep their order."""

    seed: int = 0
    iterations: int = 4000
    batch: int = 128
    learning_rate: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.02
    ema: float = 0.998
    class_dropout: float = 0.1
    rotation: float = 0.1  # radians, standard deviation
    zoom: float = 0.04  # relative, standard deviation
    width: int = 128
    heads: int = 4
    layers: int = 4
    patch: int = 2
    threads: int = 1


def build(config: Config) -> DiTTransformer2DModel:
    """The untrained network."""
    return untrained(config.width, config.heads, config.layers, config.patch, channels=1, size=8, classes=NULL_CLASS)


def untrained(
    width: int, heads: int, layers: int, patch: int, channels: int, size: int, classes: int
) -> DiTTransformer2DModel:
    """A class-conditional network whose residual branches and output start at zero. Reference: arXiv 2212.09748, 3.2.

    Args:
        size: pixels, both ways.
        classes: beside which there is the unconditional one.
    """
    net = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=channels,
        out_channels=channels,  # written out because DiTPipeline reads it from the config
        num_layers=layers,
        sample_size=size,
        patch_size=patch,
        num_embeds_ada_norm=classes,
    )
    for name, parameter in net.named_parameters():
        if "norm1.linear" in name or name.startswith("proj_out"):
            nn.init.zeros_(parameter)
        elif name.endswith("embedding_table.weight"):
            nn.init.normal_(parameter, std=0.2)
    # diffusers drops labels in training mode, but in every block by another draw: we drop them ourselves.
    return net.eval()


def augment(images: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Each image turned and zoomed a little about its centre (bicubic: 8 x 8 pixels have no blur to spare)."""
    angle = config.rotation * torch.randn(len(images), generator=generator)
    scale = torch.exp(config.zoom * torch.randn(len(images), generator=generator))
    cos, sin, zero = angle.cos() * scale, angle.sin() * scale, torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    turned = nn.functional.grid_sample(images + 1, grid, mode="bicubic", align_corners=False) - 1
    return turned.clamp(-1, 1)


def loss_of(net: DiTTransformer2DModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of v = alpha eps - sigma x0 at uniform continuous timesteps in [0, 999]."""
    log_alpha = 0.5 * linear_beta().log()
    t = (torch.rand(1, generator=generator) + torch.linspace(0, 1, len(images) + 1)[:-1]) % 1 * 999
    low = t.long().clamp(max=998)
    alpha = torch.lerp(log_alpha[low], log_alpha[low + 1], (t - low).double()).exp().float()[:, None, None, None]
    sigma = (1 - alpha**2).sqrt()
    eps = torch.randn(images.shape, generator=generator)
    v = net(alpha * images + sigma * eps, timestep=t, class_labels=labels).sample
    return nn.functional.mse_loss(v, alpha * eps - sigma * images)


@torch.no_grad()
def validation_loss(net: DiTTransformer2DModel, images: Tensor, labels: Tensor) -> float:
    """The loss on the same noise at every call."""
    generator = torch.Generator().manual_seed(1)
    return sum(float(loss_of(net, images, labels, generator)) for _ in range(5)) / 5


def rate(config: Config, step: int) -> float:
    """Learning rate factor: linear warm-up, then a straight line to zero."""
    return min((step + 1) / config.warmup, (config.iterations - step) / (config.iterations - config.warmup))


class Trainer:
    """Network, running average and optimiser; `advance` makes one step and returns its loss."""

    def __init__(self, config: Config) -> None:
        self.config, self.done = config, 0
        images, labels = digits_data()
        self.images, self.labels = images[~held_out()], labels[~held_out()]
        self.net, self.average = build(config), build(config).requires_grad_(False)
        self.average.load_state_dict(self.net.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate(config, step))
        self.generator = torch.Generator().manual_seed(config.seed)

    def advance(self) -> float:
        config, generator = self.config, self.generator
        pick = torch.randint(len(self.images), (config.batch,), generator=generator)
        dropped = torch.rand(config.batch, generator=generator) < config.class_dropout
        classes = self.labels[pick].masked_fill(dropped, NULL_CLASS)
        loss = loss_of(self.net, augment(self.images[pick], config, generator), classes, generator)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        blend = min(config.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(value, 1 - blend)
        self.done += 1
        return loss.item()


def train(config: Config) -> tuple[DiTTransformer2DModel, list[dict[str, float]]]:
    """The averaged network and the record (step, training loss, held-out loss of the averaged network, seconds)."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    images, labels = digits_data()
    trainer, fresh = Trainer(config), held_out()
    record, running, start = [], math.nan, time.perf_counter()
    for step in range(1, config.iterations + 1):
        loss = trainer.advance()
        running = loss if step == 1 else 0.99 * running + 0.01 * loss
        if step % max(config.iterations // 20, 1) == 0:
            seconds = time.perf_counter() - start
            left = seconds / step * (config.iterations - step)
            held = validation_loss(trainer.average, images[fresh], labels[fresh])
            record.append({"step": step, "loss": running, "held_out_loss": held, "seconds": seconds})
            line = f"{step:6d}  loss {running:.4f}  held out {held:.4f}  {seconds:4.0f} s, {left:4.0f} s left"
            print(line, flush=True)
    return trainer.average, record


def save(net: DiTTransformer2DModel, folder: Path) -> None:
    """config.json and fp16 weights as diffusers reads them, and the scheduler's config in `scheduler/`."""
    net.half().save_pretrained(folder)
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.save_pretrained(folder / "scheduler")


def parse() -> tuple[Config, Path]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="model folder to write")
    for field in fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    out = given.pop("out")
    return Config(**given), out


def main() -> None:
    config, folder = parse()
    net, record = train(config)
    print(f"{sum(p.numel() for p in net.parameters())} parameters -> {folder}")
    save(net, folder)
    log = {"config": asdict(config), "record": record}
    (folder / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
