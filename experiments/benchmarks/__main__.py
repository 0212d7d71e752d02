"""What a solver costs around its network, and what the network's calls alone cost: measured side by side.

    python -m epd.experiments.benchmarks                       # what is missing
    python -m epd.experiments.benchmarks --only overhead       # one suite, or one cell: latency.digits-batch-1
    python -m epd.experiments.benchmarks --print               # what is there

Each cell is a file of results/benchmarks, with the environment that it was measured in; a stopped command goes on from
them, and a cell whose file is deleted is measured again. At the end benchmarks.md and the pictures are made of all of
them. Let nothing else run beside it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import caches, graphed, latency, memory, overhead, pipelines, profile, report, training
from .timing import Machine, Settings, keep_freed_memory

log = logging.getLogger("epd")
SUITES: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "overhead": overhead.cells, "latency": latency.cells, "pipelines": pipelines.cells, "graphs": graphed.cells,
    "training": training.cells, "memory": memory.cells, "profile": profile.cells,
    "caches": caches.cells,
}  # fmt: skip


def jobs(only: Sequence[str], settings: Settings) -> dict[str, Callable[[Settings, Machine], Any]]:
    """The cells `suite.cell` that are asked for; all of them where none is.

    Raises:
        ValueError: for a name that no suite and no cell has.
    """
    every = {f"{suite}.{name}": cell for suite, cells in SUITES.items() for name, cell in cells(settings).items()}
    for name in only:
        if name not in SUITES and name not in every:
            raise ValueError(f"no suite or cell is named {name!r}: there are {', '.join([*SUITES, *every])}")
    return {name: cell for name, cell in every.items() if not only or {name, name.partition(".")[0]} & {*only}}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="SUITE[.CELL]", help="what to measure")
    parser.add_argument("--print", action="store_true", help="print what is there, measure nothing")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="of each measurement, at most")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of each measurement, about")
    parser.add_argument("--small", action="store_true", help="smallest networks and ranges: does everything run?")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the cells and the report")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.print:
        print(report.markdown(report.contents(args.out)))
        return 0
    keep_freed_memory()
    settings = Settings(args.rounds, args.seconds, args.small, torch.device(args.device))
    asked = jobs(args.only, settings)
    missing = {name: cell for name, cell in asked.items() if not (args.out / f"{name.replace('.', '/')}.json").exists()}
    machine = Machine.measured(settings) if missing else None
    for number, (name, cell) in enumerate(missing.items(), 1):
        log.info("cell %d of %d: %s", number, len(missing), name)
        assert machine is not None
        suite, _, own = name.partition(".")
        report.save(args.out, suite, own, machine, cell(settings, machine))
    print(*report.write(args.out), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
