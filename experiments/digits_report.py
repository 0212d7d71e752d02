"""How good the embedded `digits` network is: `python -m epd.experiments.digits_report` writes a result file.

1,000 class-conditional samples (converged ODE, guidance 1) are judged by the classifier that never saw the network; a
copying network would show in the distance of its samples to the training images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..denoisers.digits import CLASSIFIER_FILE, MODEL_FOLDER, digits, digits_classifier, digits_data, held_out
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser
from ..runs.environment import environment
from ..solvers import rules, schedules
from ..solvers.solve import solve

RESULT = Path(__file__).resolve().parent / "results" / "digits_training.json"


def reference(denoiser: Denoiser, noise: Tensor, sigma_max: float, sigma_min: float, steps: int) -> Tensor:
    """A fine reference solution: Heun on the polynomial schedule (rho 7)."""
    with torch.no_grad():
        return solve(rules.heun(), denoiser, noise, schedules.polynomial(steps, sigma_min, sigma_max))


def samples(count: int, steps: int, guidance: float = 1.0) -> Tensor:
    """Finished states (count, 1, 8, 8) of the seeds 0..count-1; seed s is of class s mod 10."""
    model = digits(guidance)
    parts = [range(first, min(first + 100, count)) for first in range(0, count, 100)]
    return torch.cat(
        [
            reference(model.for_seeds(p), unit_noise(p, model.shape), model.sigma_max, model.sigma_min, steps)
            for p in parts
        ]
    )


def agreement(images: Tensor) -> float:
    """Share of images that the classifier sees as their seed's class."""
    wanted = torch.arange(len(images)) % 10
    return float((digits_classifier()(images).argmax(1) == wanted).float().mean())


def nearest(images: Tensor) -> float:
    """Median RMS distance per pixel to the nearest training image."""
    data, _ = digits_data()
    distance = torch.cdist(images.flatten(1), data[~held_out()].flatten(1)).amin(1)
    return float(distance.median()) / 8


def milliseconds(call: Callable[[], Tensor], repeats: int = 30) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[repeats // 2]


def report(count: int, steps: int) -> tuple[dict[str, object], Tensor]:
    """The result and the samples that it speaks of."""
    start = time.perf_counter()
    images = samples(count, steps)
    seconds = time.perf_counter() - start
    data, _ = digits_data()
    with safe_open(str(CLASSIFIER_FILE), "pt") as file:
        classifier = json.loads(file.metadata()["training"])
    model = digits().bind([0] * 64)
    x = unit_noise(range(64), model.shape)
    with torch.no_grad():
        call = milliseconds(lambda: model(x, torch.tensor(1.0)))
    result: dict[str, object] = {
        "command": "python -m epd.experiments.digits_report",
        "environment": environment(),
        "network": json.loads((MODEL_FOLDER / "training.json").read_text()),
        "classifier": classifier,
        "samples": {"count": count, "solver": f"Heun, {steps} steps, rho 7, guidance 1", "seconds": round(seconds, 1)},
        "class_agreement": agreement(images),
        "class_agreement_guidance_2": agreement(samples(count, steps, 2.0)),
        "rms_to_nearest_training_image": {"samples": nearest(images), "held_out_images": nearest(data[held_out()])},
        "call_batch_64_ms": round(call, 2),
    }
    return result, images


def draw(images: Tensor, file: Path, columns: int = 20) -> None:
    """A grid of the images, one class per row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_class = images[: 10 * columns].reshape(columns, 10, 8, 8).transpose(0, 1)
    grid = torch.nn.functional.pad(by_class, (1, 1, 1, 1), value=-0.3).permute(0, 2, 1, 3).reshape(100, -1)
    pixels = (grid / 2 + 0.5).clamp(0, 1).repeat_interleave(6, 0).repeat_interleave(6, 1)
    pyplot.imsave(file, pixels.numpy(), cmap="gray", vmin=0, vmax=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1000, help="number of samples")
    parser.add_argument("--steps", type=int, default=40, help="Heun steps")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    parser.add_argument("--grid", type=Path, help="also write a picture of the first 200 samples here")
    given = parser.parse_args()
    result, images = report(given.count, given.steps)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "network"}, indent=1))
    if given.grid:
        draw(images, given.grid)


if __name__ == "__main__":
    main()
