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

import logging
from collections.abc import Sequence

from ..cells_command import cells_parser, shown
from .cells import make, missing
from .page import FOLDER, printed
from .pictures import drawn

log = logging.getLogger("epd")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing, prints or draws."""
    args = cells_parser(__doc__, "PATH", FOLDER).parse_args(argv)
    cells = [] if shown(args, printed, drawn) else missing(args.out, args.only)
    for number, cell in enumerate(cells, 1):
        log.info("cell %d of %d: %s", number, len(cells), cell.path)
        make(cell, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
