"""How good the embedded `shapes` network is: `python -m epd.experiments.shapes_report` writes a result file.

The stock pipeline (50 Euler steps on a uniform grid, guidance 3) paints 400 pictures of each kind of prompt, and the
verifier judges them. Two training objects, held-out combinations and unseen things are told apart as in `shapes_world`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.shapes_verifier import verify
from ..denoisers.shapes_world import parse, prompts
from ..pipelines.shapes import MODEL_FOLDER, shapes_pipeline
from ..runs.environment import environment

RESULT = Path(__file__).resolve().parent / "results" / "shapes_training.json"
BATCH = 100


def kinds() -> dict[str, list[str]]:
    """Prompts by kind."""
    one = [prompt for prompt in prompts("train") if parse(prompt).relation is None]
    two = [prompt for prompt in prompts("train") if parse(prompt).relation is not None]
    return {"one object": one, "two objects": two, "held-out combinations": [*prompts("held-out")],
            "unseen thing": [*prompts("unseen")]}  # fmt: skip


def paint(pipe: Any, asked: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:  # noqa: ANN401
    """(B, 3, 16, 16) in [0, 1]: a picture for each prompt, from the noise of each seed."""
    pictures = pipe(
        list(asked),
        sigmas=np.linspace(1, 1 / steps, steps).tolist(),
        guidance_scale=guidance,
        latents=unit_noise(seeds, (3, 16, 16)),
        max_sequence_length=0,
        output_type="pt",
    )
    return pictures.images


def interval(share: float, count: int) -> list[float]:
    """Of a share, 95 % by Wilson's score."""
    z = 1.959964
    centre, half = share + z**2 / (2 * count), z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return [round((centre + sign * half) / (1 + z**2 / count), 4) for sign in (-1, 1)]


def judged(pipe: Any, choice: Sequence[str], count: int, steps: int, guidance: float) -> dict[str, object]:  # noqa: ANN401
    """The mean scores of seeds 0 to count - 1 with these prompts dealt out."""
    asked = [choice[seed % len(choice)] for seed in range(count)]
    parts = [range(count)[i : i + BATCH] for i in range(0, count, BATCH)]
    images = [paint(pipe, asked[p.start : p.stop], p, steps, guidance) for p in parts]
    verdict = verify(torch.cat(images), asked)
    share = float(verdict.all.double().mean())
    frac, graded = (round(float(score.mean()), 4) for score in (verdict.frac, verdict.graded))
    return {"prompts": len(choice), "all": share, "interval": interval(share, count), "frac": frac, "graded": graded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=400, help="pictures of each kind")
    parser.add_argument("--steps", type=int, default=50, help="Euler steps")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe = shapes_pipeline()
    pipe.set_progress_bar_config(disable=True)
    start = time.process_time()
    scores = {kind: judged(pipe, choice, given.count, given.steps, given.guidance) for kind, choice in kinds().items()}
    result = {
        "command": "python -m epd.experiments.shapes_report",
        "environment": environment(),
        "network": json.loads((MODEL_FOLDER / "training.json").read_text()),
        "samples": {
            "count": given.count,
            "solver": f"Euler, {given.steps} steps, guidance {given.guidance:g}",
            "cpu_seconds": round(time.process_time() - start, 1),
        },
        "accuracy": scores,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
