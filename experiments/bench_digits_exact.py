"""The benchmark: learned families on `digits-exact`, RMSE to the exact end point on 2,048 fresh samples in float64.

    python -m epd.experiments.bench_digits_exact            # every row that results/digits_exact.json lacks
    python -m epd.experiments.bench_digits_exact --seeds 1  # a quick look
    OMP_NUM_THREADS=1 python -m epd.experiments.bench_digits_exact --only epd s4s --out part.json  # beside another
    python -m epd.experiments.bench_digits_exact --merge part.json

Each row is one training run with the family's defaults, on as many threads as it says; its seconds are those of the
whole run, teacher included. Rows are written as they come.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..denoisers.digits import digits_exact
from ..denoisers.mixture import GaussianMixture
from ..denoisers.noise import unit_noise
from ..distill.config import DistillConfig
from ..distill.families import EVERYTHING
from ..distill.plan import make_plan
from ..distill.train import distill
from ..formats.files import write_atomically
from ..runs.environment import environment
from ..solvers.exact import converged
from ..solvers.solve import solve
from ..solvers.table import Table

RESULTS = Path(__file__).resolve().parent / "results" / "digits_exact.json"
CALLS = (3, 5, 7, 9)
SAMPLES = 2048
# Name -> what differs from the defaults, and how many training seeds.
ROWS: dict[str, tuple[dict[str, object], int]] = {
    "default": ({}, 5),
    "epd": ({"family": "epd"}, 5),
    "s4s": ({"family": "s4s"}, 5),
    "epd-plugin": ({"family": "epd-plugin"}, 3),
    "without sigma_scale": ({"learn": tuple(name for name in EVERYTHING if name != "sigma_scale")}, 5),
    "two-call, memory 0": ({"memory": 0}, 3),
    "two-call, memory 2": ({"memory": 2}, 3),
    "one-call K=2, memory 1": ({"step_calls": 1, "memory": 1}, 3),
    "one-call K=2, memory 2": ({"step_calls": 1, "memory": 2}, 3),
}


def exact_ends(model: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Noise of seeds 0..2047 and the exact end points, float64."""
    noise = unit_noise(range(SAMPLES), model.shape, torch.float64)
    ends = [converged(model, part, [model.sigma_max, model.sigma_min], 1e-6, 1e-6)[-1] for part in noise.split(512)]
    return noise, torch.cat(ends)


def learn(model: GaussianMixture, config: DistillConfig, cache: Path) -> tuple[Table, float]:
    """The table of one run and its seconds."""
    began = time.perf_counter()
    *_, last = distill(model, make_plan(model, config), cache=cache)
    return last.table, time.perf_counter() - began


def error(table: Table, model: GaussianMixture, noise: Tensor, ends: Tensor) -> float:
    """RMSE over all elements of all samples."""
    with torch.no_grad():
        found = torch.cat([solve(table.rule(), model, part, table.sigmas) for part in noise.split(512)])
    return float((found - ends).square().mean().sqrt())


def missing(
    rows: list[dict[str, object]], seeds: int | None, names: list[str], all_calls: list[int]
) -> Iterator[tuple[str, int, int]]:
    """(name, calls, seed) of the runs that are not in `rows` yet."""
    done = {(row["family"], row["calls"], row["seed"]) for row in rows}
    for name, (_, count) in ROWS.items():
        for seed in range(count if seeds is None else min(seeds, count)):
            for calls in all_calls:
                if (name, calls, seed) not in done and (not names or name in names):
                    yield name, calls, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="training seeds of each row; default: the row's own")
    parser.add_argument("--only", nargs="*", default=[], choices=list(ROWS), metavar="NAME", help="rows to run")
    parser.add_argument("--merge", type=Path, nargs="*", help="add the rows of these files and run nothing")
    parser.add_argument("--calls", type=int, nargs="*", default=list(CALLS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = rows_of(args.out) if args.out.exists() else []
    if args.merge is not None:
        write([*rows, *(row for path in args.merge for row in rows_of(path))], args.out)
        return
    model = digits_exact()
    noise, ends = exact_ends(model)
    for name, calls, seed in missing(rows, args.seeds, args.only, args.calls):
        config = DistillConfig.model_validate({"calls": calls, "seed": seed, **ROWS[name][0]})
        with tempfile.TemporaryDirectory() as cache:  # each run solves its own teacher: that is part of its time
            table, seconds = learn(model, config, Path(cache))
        row = {"family": name, "calls": calls, "seed": seed, "nfe": table.nfe, "seconds": round(seconds, 1)}
        rows.append({**row, "threads": torch.get_num_threads(), "rmse": error(table, model, noise, ends)})
        print(json.dumps(rows[-1]), flush=True)
        write(rows, args.out)


def rows_of(path: Path) -> list[dict[str, object]]:
    return json.loads(path.read_text())["rows"]


def write(rows: list[dict[str, object]], path: Path) -> None:
    order = {name: i for i, name in enumerate(ROWS)}
    rows = sorted(rows, key=lambda row: (order[str(row["family"])], row["calls"], row["seed"]))
    result = {"samples": SAMPLES, "environment": environment(), "rows": rows}
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
