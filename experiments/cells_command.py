"""The command line of a benchmark made cell by cell: what is missing is made, what is there is printed or drawn."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
log = logging.getLogger("epd")


def cells_command(
    argv: Sequence[str] | None,
    doc: str | None,
    filters: str,
    folder: Path,
    jobs: Callable[[Sequence[str]], Sequence[Any]],
    run: Callable[[Any, Path, Path], None],
    printed: Callable[[Path], str],
    drawn: Callable[[Path, Path], Iterable[Path]],
) -> int:
    """Measures what is missing, prints or draws.

    Args:
        doc: shown as help.
        filters: the form of a cell's filter, such as MODEL,FAMILY,CALLS,SEED.
        folder: of the cells, where no other is given.
        jobs: filters -> the cells that fit, each a dataclass of model, kind, calls and seed.
        run: makes a cell; given the folders of the cells and of what they share.
        printed: folder of the cells -> the README's tables.
        drawn: folders of the cells and of the pictures -> the pictures that were written.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar=filters, help="cells to make")
    parser.add_argument("--print", action="store_true", help="print the README's tables, measure nothing")
    parser.add_argument("--draw", action="store_true", help="draw the pictures, measure nothing")
    parser.add_argument("--out", type=Path, default=folder, help="folder of the cells")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pictures")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench", help="teachers and end points")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.print:
        print(printed(args.out))
    if args.draw:
        print(*drawn(args.out, args.docs), sep="\n")
    cells = [] if args.print or args.draw else jobs(args.only)
    for number, job in enumerate(cells, 1):
        log.info("cell %d of %d: %s, %s, %d calls, seed %d", number, len(cells), *astuple(job))
        run(job, args.out, args.work)
    return 0
