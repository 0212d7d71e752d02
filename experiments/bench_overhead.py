"""What the loop costs: wall-clock of `solve` over that of the bare network calls of the same shapes.

    python -m epd.experiments.bench_overhead

Batch 64 of `digits`, the tables that EPD's and dense trainings start from, and a learned two-call one with its anchor
and memory.
One network serves both sides; a round is solve, bare, bare, solve, so that a drifting machine cancels; the median of
the rounds counts. The C library keeps the memory that it freed: on the CPU about a quarter of the network's time is
otherwise spent on returning pages to the system and faulting them in again, by chance more on one side or the other.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..denoisers.diffusers_networks import dit
from ..denoisers.digits import classes_of, digits, digits_transformer
from ..denoisers.noise import unit_noise
from ..denoisers.timesteps import linear_beta
from ..distill.config import DistillConfig
from ..distill.initial import initial_table
from ..formats.files import write_atomically
from ..runs.environment import environment
from ..solvers.solve import solve
from ..solvers.table import Table
from ..solvers.walk import plan

RESULTS = Path(__file__).resolve().parent / "results" / "overhead.json"
BATCH = 64


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        work()
    return time.perf_counter() - began


def keep_freed_memory() -> None:
    """Asks glibc to keep up to 1 GiB that was freed (mallopt M_MMAP_THRESHOLD, M_TRIM_THRESHOLD); elsewhere nothing."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 1 << 25)
            mallopt(-1, 1 << 30)


def bare_calls(network: Callable[..., object], table: Table) -> Callable[[], None]:
    """The network called as often and as wide as a trajectory calls it, and nothing else."""
    widths = [len(ask.points) for step in plan(table.rule(), table.sigmas) for ask in step]
    inputs = [
        (torch.randn(BATCH * k, 1, 8, 8), torch.full((BATCH * k,), 500.0), classes_of(range(BATCH * k))) for k in widths
    ]

    def call() -> None:
        for x, timestep, labels in inputs:
            network(x, timestep=timestep, class_labels=labels, return_dict=False)

    return call


def measure(table: Table, rounds: int) -> dict[str, float]:
    """Medians over rounds of solve, bare calls and their ratio."""
    network = digits_transformer()
    model = dit(network, linear_beta(), "v_prediction", "digits").bind(classes_of(range(BATCH)))
    noise, rule, bare = unit_noise(range(BATCH), (1, 8, 8)), table.rule(), bare_calls(network, table)

    def ours() -> None:
        solve(rule, model, noise, table.sigmas)

    quads = [[seconds(work) for work in (ours, bare, bare, ours)] for _ in range(rounds + 2)][2:]  # two warm up
    return {
        "solve_ms": 1e3 * statistics.median(first + last for first, _, _, last in quads) / 2,
        "bare_ms": 1e3 * statistics.median(second + third for _, second, third, _ in quads) / 2,
        "ratio": statistics.median((first + last) / (second + third) for first, second, third, last in quads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    keep_freed_memory()
    rows = {}
    tables = {
        "dense, K = 1": initial_table(DistillConfig(points=1), digits()),
        "dense, K = 2": initial_table(DistillConfig(points=2), digits()),
        "epd": initial_table(DistillConfig(family="epd"), digits()),
        "two-call": Table.load(RESULTS.parent / "tables" / "digits-two-call-5.json"),
    }
    for family, table in tables.items():
        rows[family] = measure(table, args.rounds)
        print(family, json.dumps(rows[family]))
    result = {"batch": BATCH, "calls": 5, "rounds": args.rounds, "environment": environment(), "rows": rows}
    write_atomically(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
