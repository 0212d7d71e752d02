"""The README's before and after: `python -m epd.experiments.readme_pictures` draws docs/digits_pipeline.png.

diffusers' own `DiTPipeline` with the embedded network, its stock DDIM scheduler at 6 steps, then the same pipeline
after `epd.enable` with a table of 5 sequential calls, both against 100 stock steps: same seeds, same classes. The
table, `results/digits_5calls.json`, is one that `make demo` learns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoisers.digits import classes_of, digits_pipeline
from ..evaluation.plots import save_side_by_side
from ..formats.files import write_atomically
from ..pipelines.enable import disable, enable
from ..runs.environment import environment
from ..solvers.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
TABLE = RESULTS / "digits_5calls.json"
RESULT = RESULTS / "digits_pipeline.json"
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "digits_pipeline.png"
STOCK_STEPS, REFERENCE_STEPS = 6, 100
SAMPLES, BATCH = 500, 100
ROWS, COLUMNS = 4, 5


def pictures(pipe: Any, steps: int, count: int) -> Tensor:  # noqa: ANN401 - a pipeline of diffusers
    """(count, 1, 8, 8) in [0, 1] of the seeds 0..count-1, seed s of class s mod 10, by the pipeline's own call."""
    parts = []
    for first in range(0, count, BATCH):
        seeds = range(first, min(first + BATCH, count))
        made = pipe(
            class_labels=classes_of(seeds).tolist(),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=steps,
            guidance_scale=1.0,
            output_type="np",
        ).images
        parts.append(torch.as_tensor(made).permute(0, 3, 1, 2))
    return torch.cat(parts)


def rmse(one: Tensor, other: Tensor) -> float:
    """Of grey values in [0, 1], over all pixels of all pictures."""
    return float((one - other).double().square().mean().sqrt())


def measure(table: Table, count: int) -> dict[str, Tensor]:
    """Pictures by name: before, after, the reference, and stock at as many evaluations in all as the table's."""
    pipe = digits_pipeline()
    pipe.set_progress_bar_config(disable=True)
    before, equal = pictures(pipe, STOCK_STEPS, count), pictures(pipe, table.nfe, count)
    enable(pipe, table)
    after = pictures(pipe, table.depth, count)
    disable(pipe)
    reference = pictures(pipe, REFERENCE_STEPS, count)
    return {
        f"stock DDIM, {STOCK_STEPS} calls": before,
        f"learned, {table.depth} calls": after,
        f"stock DDIM, {REFERENCE_STEPS} calls": reference,
        "equal": equal,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the picture and writes the numbers."""
    parser = argparse.ArgumentParser(description="draw the README's before and after, and measure it")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    given = parser.parse_args(argv)
    table = Table.load(given.table)
    found = measure(table, given.samples)
    equal = found.pop("equal")
    before, after, reference = found.values()
    shown = {name: images[: ROWS * COLUMNS] for name, images in found.items()}
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    save_side_by_side(shown, given.picture, COLUMNS)
    result = {
        "note": f"the table is one that `make demo` learns, unchanged; guidance 1, seeds 0..{given.samples - 1}",
        "table": given.table.name,
        "digest": table.digest,
        "samples": given.samples,
        "reference": {"scheduler": "DDIMScheduler", "calls": REFERENCE_STEPS},
        "before": {"scheduler": "DDIMScheduler", "calls": STOCK_STEPS, "rmse": rmse(before, reference)},
        "equal": {"scheduler": "DDIMScheduler", "calls": table.nfe, "rmse": rmse(equal, reference)},
        "after": {"calls": table.depth, "nfe": table.nfe, "rmse": rmse(after, reference)},
        "environment": environment(),
    }
    write_atomically(given.result, (json.dumps(result, indent=2) + "\n").encode())
    away = [rmse(images, reference) for images in (before, after)]
    print(f"RMSE to {REFERENCE_STEPS} stock steps: {away[0]:.4f} before, {away[1]:.4f} after")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
