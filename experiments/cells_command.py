"""The command line of a benchmark made cell by cell: what is missing is made, what is there is printed or drawn."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

ROOT = Path(__file__).resolve().parent.parent
log = logging.getLogger("epd")
CellT = TypeVar("CellT")


def cells_command(
    argv: Sequence[str] | None,
    doc: str | None,
    filters: str,
    folder: Path,
    jobs: Callable[[Sequence[str]], Sequence[Any]],
    run: Callable[[Any, Path, Path], None],
    printed: Callable[[Path], str],
    drawn: Callable[[Path, Path], Iterable[Path]],
    processes: int = 1,
) -> int:
    """Measures what is missing, prints or draws. Of several processes each goes on where a cell fails; 1 then.

    Args:
        doc: shown as help.
        filters: the form of a cell's filter, such as MODEL,FAMILY,CALLS,SEED.
        folder: of the cells, where no other is given.
        jobs: filters -> the cells that fit, each a dataclass of model, kind, calls, seed and whatever more.
        run: makes a cell; given the folders of the cells and of what they share.
        printed: folder of the cells -> the README's tables.
        drawn: folders of the cells and of the pictures -> the pictures that were written.
        processes: that make cells at the same time, where no other number is given.
    """
    parser = cells_parser(doc, filters, folder)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench", help="teachers and end points")
    parser.add_argument("--processes", type=int, default=processes, help="that make cells; several have a thread each")
    args = parser.parse_args(argv)
    cells = [] if shown(args, printed, drawn) else jobs(args.only)
    make = partial(_make, run, args.out, args.work, len(cells))
    if args.processes == 1:
        for numbered in enumerate(cells, 1):
            make(numbered)
        return 0
    with multiprocessing.get_context("spawn").Pool(args.processes, _begin) as pool:
        return int(not all(list(pool.imap(partial(_tried, make), enumerate(cells, 1)))))


def cells_parser(doc: str | None, filters: str, folder: Path) -> argparse.ArgumentParser:
    """The options that every such command has; arguments as of `cells_command`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar=filters, help="cells to make")
    parser.add_argument("--print", action="store_true", help="print the tables, measure nothing")
    parser.add_argument("--draw", action="store_true", help="draw the pictures, measure nothing")
    parser.add_argument("--out", type=Path, default=folder, help="folder of the cells")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pictures")
    return parser


def shown(
    args: argparse.Namespace, printed: Callable[[Path], str], drawn: Callable[[Path, Path], Iterable[Path]]
) -> bool:
    """Prints and draws what is asked for; whether anything was, and nothing is to be measured."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.print:
        print(printed(args.out))
    if args.draw:
        print(*drawn(args.out, args.docs), sep="\n")
    return args.print or args.draw


def fits(text: str, cell: Any) -> bool:  # noqa: ANN401 - a dataclass
    """Whether the first four fields of a cell are those of a filter; what is empty or left out is any."""
    words, parts = text.split(","), [str(part) for part in astuple(cell)[:4]]
    return len(words) <= len(parts) and all(word in ("", part) for word, part in zip(words, parts, strict=False))


def chosen(every: Sequence[CellT], only: Sequence[str], form: str) -> list[CellT]:
    """The cells that fit, filter by filter; all where there is none.

    Args:
        form: of a filter, such as MODEL,FAMILY,CALLS,SEED.

    Raises:
        ValueError: for a filter that no cell fits.
    """
    for text in only:
        if not any(fits(text, cell) for cell in every):
            named = [", ".join(dict.fromkeys(str(astuple(cell)[i]) for cell in every)) for i in range(4)]
            of = "; ".join(f"{word} {names}" for word, names in zip(form.split(","), named, strict=True))
            raise ValueError(f"no cell is {text!r}: give {form}, of {of}; an empty one is any")
    return [*dict.fromkeys(cell for text in only or [""] for cell in every if fits(text, cell))]


def _make(run: Callable[[Any, Path, Path], None], out: Path, work: Path, count: int, numbered: tuple[int, Any]) -> None:
    number, job = numbered
    log.info("cell %d of %d: %s, %s, %d calls, seed %d", number, count, *astuple(job)[:4])
    run(job, out, work)


def _tried(make: Callable[[tuple[int, Any]], None], numbered: tuple[int, Any]) -> bool:
    """Whether a cell was made: others don't depend on it, and the night would be lost."""
    try:
        make(numbered)
    except Exception:
        log.exception("cell %d failed", numbered[0])
        return False
    return True


def _begin() -> None:
    """Of a process that makes cells beside others."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
