"""Train the digits classifier (the judge of samples): `python -m epd.experiments.train_digits_classifier`.

It never sees the 200 held-out images; its accuracy on them is printed and recorded.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..denoisers.digits import CLASSIFIER_FILE, digits_data, held_out
from ..denoisers.digits_classifier import DigitsClassifier
from .train_digits import Config, augment


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is their label's."""
    return float((net(images).argmax(1) == labels).float().mean())


def train(seed: int = 0, epochs: int = 60, batch: int = 64, learning_rate: float = 3e-3) -> DigitsClassifier:
    """A classifier trained on turned, zoomed and slightly noisy images with label smoothing 0.05."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = (part[~held_out()] for part in digits_data())
    net = DigitsClassifier()
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for step in range(steps):
        pick = torch.randint(len(images), (batch,), generator=generator)
        shown = augment(images[pick], Config(), generator)
        shown = shown + 0.1 * torch.randn(shown.shape, generator=generator)
        loss = nn.functional.cross_entropy(net(shown), labels[pick], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if (step + 1) % (steps // 6) == 0:
            print(f"{step + 1:6d}/{steps}  loss {loss.item():.4f}", flush=True)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CLASSIFIER_FILE)
    given = parser.parse_args()
    start = time.perf_counter()
    net = train(given.seed)
    seconds = time.perf_counter() - start
    images, labels = digits_data()
    fresh = held_out()
    numbers = {
        "seed": given.seed,
        "parameters": sum(p.numel() for p in net.parameters()),
        "accuracy_train": accuracy(net, images[~fresh], labels[~fresh]),
        "accuracy_held_out": accuracy(net, images[fresh], labels[fresh]),
        "seconds": round(seconds, 1),
    }
    state = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file(state, str(given.out), metadata={"training": json.dumps(numbers)})
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
