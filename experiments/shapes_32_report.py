"""How good the embedded `shapes-32` network is: `python -m epd.experiments.shapes_32_report` writes a result file.

Pictures of every class, at guidance 1 and 2, judged by the world's verifier, one thing and two things apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from ..denoisers.noise import unit_noise
from ..denoisers.shapes_32 import MODEL_FOLDER, classes, classes_of, shapes_32
from ..denoisers.shapes_verifier import verify
from ..runs.environment import environment
from ..solvers import rules
from ..solvers.schedules import logsnr
from ..solvers.solve import solve
from .shapes_report import interval

RESULT = Path(__file__).resolve().parent / "results" / "shapes_32_training.json"
BATCH = 48


def judged(guidance: float, count: int, steps: int) -> dict[str, Any]:
    """Mean scores of the seeds 0 to count - 1, by how many things their prompts name."""
    model, found = shapes_32(guidance), {"one thing": list[torch.Tensor](), "two things": list[torch.Tensor]()}
    for first in range(0, count, BATCH):
        seeds = range(first, min(first + BATCH, count))
        noise, levels = unit_noise(seeds, model.shape), logsnr(steps, model.sigma_min, model.sigma_max)
        with torch.no_grad():
            pictures = model.decode(solve(rules.ipndm(2), model.for_seeds(seeds), noise, levels))
        labels = classes_of(seeds)
        verdict = verify(pictures, [classes()[label] for label in labels.tolist()])
        scores = torch.stack([verdict.all, verdict.frac, verdict.graded])
        found["one thing"].append(scores[:, labels < 12])
        found["two things"].append(scores[:, labels >= 12])
    out = {}
    for name, parts in found.items():
        scores = torch.cat(parts, 1).double()
        share, frac, graded = (round(float(score.mean()), 4) for score in scores)
        out[name] = {"pictures": scores.shape[1], "all": share, "interval": interval(share, scores.shape[1]),
                     "frac": frac, "graded": graded}  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=240, help="pictures at each guidance")
    parser.add_argument("--steps", type=int, default=25, help="of iPNDM-2, even in log SNR")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    scores = {f"guidance {g:g}": judged(g, given.count, given.steps) for g in (1.0, 2.0)}
    content = {
        "command": "python -m epd.experiments.shapes_32_report",
        "environment": environment(),
        "network": json.loads((MODEL_FOLDER / "training.json").read_text(encoding="utf-8")),
        "sampling": {"steps": given.steps, "rule": "ipndm2", "schedule": "logsnr"},
        "scores": scores,
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
