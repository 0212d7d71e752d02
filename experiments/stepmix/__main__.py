"""StepMix and EpsMix beside plain optimism, and the safe tuner of schedules on the exact digits.

    python -m epd.experiments.stepmix           # what is missing, or was measured with other settings
    python -m epd.experiments.stepmix --print   # the tables of docs/stepmix.md of what is there
    python -m epd.experiments.stepmix --draw    # docs/stepmix_*.png, likewise
    python -m epd.experiments.stepmix --only random/stepmix digits   # whose paths begin so

A cell is a method in one setting, on random processes, each with its own seed; or what offline data of some size
certify; or the tuner in real runs. Each lies in a file of results/stepmix and is written when it is done. What is below
the floor is judged by exact values. It takes some minutes of one core.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ..cells_command import ROOT
from .cells import make, missing
from .page import FOLDER, printed
from .pictures import drawn

log = logging.getLogger("epd")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing, prints or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="PATH", help="cells to make")
    parser.add_argument("--print", action="store_true", help="print the page's tables, measure nothing")
    parser.add_argument("--draw", action="store_true", help="draw the pictures, measure nothing")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the cells")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pictures")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.print:
        print(printed(args.out))
    if args.draw:
        print(*drawn(args.out, args.docs), sep="\n")
    cells = [] if args.print or args.draw else missing(args.out, args.only)
    for number, cell in enumerate(cells, 1):
        log.info("cell %d of %d: %s", number, len(cells), cell.path)
        make(cell, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
