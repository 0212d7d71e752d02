"""`epd table show | convert | diff`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np

from ..formats.texts import printable
from ..pipelines.find import find_table
from ..pipelines.table_description import aligned, describe, headline, shortened
from ..solvers.table import Table
from ..solvers.table_json import ARRAYS
from .options import TableConvert, TableDiff, TableShow, UsageError

log = logging.getLogger("epd")


def show(options: TableShow) -> int:
    """Prints a table for a person."""
    print(describe(find_table(options.file)))
    return 0


def convert(options: TableConvert) -> int:
    """Turns a published table into our JSON."""
    from ..solvers.convert import Grid, table_from_published

    if options.target.suffix != ".json":
        raise UsageError(f"{options.target}: tables are written as .json")
    grid = Grid(options.schedule, options.sigma_min, options.sigma_max, options.rho, options.shift, options.mu)
    if options.sigmas and grid != Grid():
        raise UsageError("sigmas and a schedule (or its ends) are both given: choose one")
    table = table_from_published(options.source, options.sigmas or None, grid)
    table.save(options.target)
    log.info("%s: %s", options.target, headline(table))
    return 0


def diff(options: TableDiff) -> int:
    """Prints what differs; 0 when the numbers are equal."""
    first, second = find_table(options.first), find_table(options.second)
    numbers = list(differences(first, second))
    notes = list(provenance_differences(first, second))
    if numbers:
        rows = [("", options.first, options.second), *numbers]
        print("\n".join(aligned(rows)))
    else:
        print(f"the numbers are equal (digest {first.digest[:12]})")
    if notes:
        print("\nprovenance, which changes no sample:")
        print("\n".join(aligned([(name, a, b) for name, a, b in notes])))
    return 1 if numbers else 0


def differences(first: Table, second: Table) -> Iterator[tuple[str, str, str]]:
    """(field, value in the first, value in the second) of every number that differs."""
    for name in ("order", "afs", "consistent"):
        one, two = getattr(first, name), getattr(second, name)
        if one != two:
            yield name, str(one), str(two)
    if first.calls != second.calls:
        yield "calls", str(list(first.calls)), str(list(second.calls))
    for name in ARRAYS:
        if name != "lookahead":
            yield from _array_differences(name, getattr(first, name), getattr(second, name))
    yield from _array_differences("lookahead", first.effective_lookahead, second.effective_lookahead)
    if (first.lookahead is None) != (second.lookahead is None):
        one, two = ("default" if t.lookahead is None else "given" for t in (first, second))
        yield "lookahead", one, two


def _array_differences(name: str, one: np.ndarray, two: np.ndarray) -> Iterator[tuple[str, str, str]]:
    if one.shape != two.shape:
        yield f"{name} shape", str(one.shape), str(two.shape)
        return
    for index in np.argwhere(one != two):
        where = tuple(int(i) for i in index)
        yield f"{name}{list(where)}", repr(float(one[where])), repr(float(two[where]))


def provenance_differences(first: Table, second: Table) -> Iterator[tuple[str, str, str]]:
    """What differs in where they come from."""
    one, two = dataclasses.asdict(first.provenance), dataclasses.asdict(second.provenance)
    for name in one:
        if one[name] == two[name]:
            continue
        if not isinstance(one[name], dict):
            yield name, shortened(one[name]), shortened(two[name])
            continue
        for key in {**one[name], **two[name]}:
            if one[name].get(key) != two[name].get(key):
                yield f"{name}.{printable(key)}", shortened(one[name].get(key)), shortened(two[name].get(key))
