"""What the loop costs: wall-clock of `solve` over that of the bare network calls of the same shapes.

    python -m epd.experiments.bench_overhead

Batch 64 of `digits`, an EPD table and a table with anchor and memory; rounds alternate, the median of their ratios
counts, so that a drifting machine does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..denoisers.digits import classes_of, digits, digits_transformer
from ..denoisers.noise import unit_noise
from ..distill.config import DistillConfig
from ..distill.families import initial_table
from ..solvers.files import write_atomically
from ..solvers.loop import plan, solve
from ..solvers.table import Table
from .environment import environment

RESULTS = Path(__file__).resolve().parent / "results" / "overhead.json"
BATCH = 64


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        work()
    return time.perf_counter() - began


def bare_calls(table: Table) -> Callable[[], None]:
    """The network called as often and as wide as a trajectory calls it, and nothing else."""
    network = digits_transformer()
    widths = [len(ask.points) for step in plan(table.rule(), table.a("sigmas")) for ask in step]
    inputs = [
        (torch.randn(BATCH * k, 1, 8, 8), torch.full((BATCH * k,), 500.0), classes_of(range(BATCH * k))) for k in widths
    ]

    def call() -> None:
        for x, timestep, labels in inputs:
            network(x, timestep=timestep, class_labels=labels, return_dict=False)

    return call


def measure(table: Table, rounds: int) -> dict[str, float]:
    """Medians over rounds of solve, bare calls and their ratio."""
    model = digits().for_seeds(range(BATCH))
    noise, rule, bare = unit_noise(range(BATCH), (1, 8, 8)), table.rule(), bare_calls(table)
    pairs = []
    for i in range(rounds + 2):
        pair = (seconds(lambda: solve(rule, model, noise, table.a("sigmas"))), seconds(bare))
        if i >= 2:  # the first two warm up
            pairs.append(pair)
    return {
        "solve_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "bare_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = {}
    for family in ("epd", "default"):
        table = initial_table(DistillConfig(family=family, calls=5), digits())
        rows[family] = measure(table, args.rounds)
        print(family, json.dumps(rows[family]))
    result = {"batch": BATCH, "calls": 5, "rounds": args.rounds, "environment": environment(), "rows": rows}
    write_atomically(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
