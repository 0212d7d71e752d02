"""What people look at in the world `shapes`: `python -m epd.experiments.shapes_world` draws docs/shapes.png, 24
renderings with their prompts, and writes the lists of prompts for `--prompts`, shapes/prompts-*.txt.
"""

from __future__ import annotations

import argparse
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch

from ..denoisers.shapes_world import prompt_of, prompts, render
from ..formats.files import write_atomically

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "shapes.png"
LISTS = Path(__file__).resolve().parent / "shapes"
ROWS, COLUMNS = 3, 8


def picture() -> bytes:
    """A PNG of the renderings of 24 seeds, each below its prompt."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    texts = [prompt_of(seed) for seed in range(ROWS * COLUMNS)]
    images = render(texts, torch.Generator().manual_seed(0)).permute(0, 2, 3, 1).numpy()
    figure = Figure(figsize=(1.3 * COLUMNS, 1.65 * ROWS), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, image, text in zip(figure.subplots(ROWS, COLUMNS).flat, images, texts, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(textwrap.fill(text, 20), fontsize=7.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the picture and writes the lists."""
    parser = argparse.ArgumentParser(description="draw renderings of the world `shapes` and list its prompts")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--lists", type=Path, default=LISTS)
    given = parser.parse_args(argv)
    for path in (given.picture.parent, given.lists):
        path.mkdir(parents=True, exist_ok=True)
    write_atomically(given.picture, picture())
    for split in ("train", "held-out", "unseen"):
        write_atomically(given.lists / f"prompts-{split}.txt", "".join(f"{p}\n" for p in prompts(split)).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
