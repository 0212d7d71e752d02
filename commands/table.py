"""`epd table show | convert | diff`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from ..pipelines.find import find_table
from ..solvers.table import Table
from .options import TableConvert, TableDiff, TableShow, UsageError

log = logging.getLogger("epd")
SECOND_ORDER = 1e-6  # a learned table's moments are free; only exact ones are worth the name


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


def headline(table: Table) -> str:
    """One line: what it costs and what it is."""
    kinds = "one-call" if set(table.calls) == {1} else "two-call" if set(table.calls) == {2} else "mixed"
    afs = ", AFS" if table.afs else ""
    return (
        f"{table.num_steps} {kinds} steps, {table.depth} sequential calls, {table.nfe} evaluations a sample, "
        f"K = {table.num_parallel}{afs}"
    )


def describe(table: Table) -> str:
    """The whole table as text."""
    learned = table.provenance
    guidance = "" if learned.guidance is None else f"guidance {learned.guidance:g}"
    purpose = [part for part in (learned.model, learned.path, guidance) if part]
    lines = [headline(table), *(["for " + ", ".join(purpose)] if purpose else [])]
    lines += [f"digest {table.digest}", "", *aligned(steps(table)), "", verdict(table)]
    directions = [*lookahead(table)]
    if directions:
        lines += ["", "look-ahead: direction to each point as anchor | memory", *aligned(directions)]
    return "\n".join([*lines, "", *origin(table)]).rstrip()


def steps(table: Table) -> Iterator[tuple[str, ...]]:
    """One row per step."""
    scaled = [name for name in ("slope_scale", "sigma_scale") if (getattr(table, name) != 1).any()]
    memory = table.memory
    yield ("step", "calls", "sigma", "to", "nodes", "at sigma", "weights", *(n.replace("_", " ") for n in scaled),
           "anchor", *(["memory"] if memory.any() else []), "sum", "moment", "order")  # fmt: skip
    sigmas, nodes = table.sigmas, table.nodes
    for n, (total, first) in enumerate(table.moments()):
        where = sigmas[n + 1] ** nodes[n] * sigmas[n] ** (1 - nodes[n])
        calls = str(table.calls[n] - (table.afs and n == 0 and table.calls[0] == 2))
        yield (
            str(n),
            calls,
            f"{sigmas[n]:.6g}",
            f"{sigmas[n + 1]:.6g}",
            numbers(nodes[n]),
            numbers(where, 4),
            numbers(table.weights[n]),
            *(numbers(getattr(table, name)[n]) for name in scaled),
            f"{table.anchor[n]:.4f}",
            *([numbers(memory[n])] if memory.any() else []),
            f"{total:.4f}",
            f"{first:.4f}",
            order_of(table, n),
        )


def order_of(table: Table, n: int) -> str:
    """Formal order of a step: 2 where the weights sum to 1 and their first moment is 1/2."""
    total, first = table.moments()[n]
    plain = bool((table.sigma_scale[n] == 1).all())
    if abs(total - 1) > SECOND_ORDER or not plain:
        return "0"
    analytic = table.afs and n == 0
    return "2" if abs(first - 0.5) <= SECOND_ORDER and not analytic else "1"


def verdict(table: Table) -> str:
    """What the moments say of the whole table."""
    orders = [order_of(table, n) for n in range(table.num_steps)]
    if all(order == "2" for order in orders):
        return "second order: in every step the weights sum to 1 and their first moment is 1/2"
    away = float(np.abs(table.moments()[:, 1] - 0.5).max())
    text = "not second order in every step" if "0" not in orders else "scaled: not consistent in every step"
    return f"{text} (largest distance of a first moment from 1/2: {away:.3g}); learned tables fit their few large steps"


def lookahead(table: Table) -> Iterator[tuple[str, ...]]:
    """One row per fan point, where it is more than the anchor slope."""
    weights = table.effective_lookahead
    if not weights.shape[1] or not weights[:, :, 1:].any():
        return
    yield ("step", "point", "anchor", "memory")
    for n, j in itertools.product(range(weights.shape[0]), range(weights.shape[1])):
        yield str(n), str(j), f"{weights[n, j, 0]:.4f}", numbers(weights[n, j, 1:])


def origin(table: Table) -> Iterator[str]:
    """Where it comes from, entry by entry."""
    entries = dataclasses.asdict(table.provenance)
    for name in ("schedule", "prediction", "resolution", "seed", "parent", "citation", "notes"):
        if entries[name] not in ("", None, ()):
            yield f"{name:<11} {_text(entries[name])}"
    for name in ("metrics", "config", "metadata"):
        for key, value in entries[name].items():
            if value is None:
                continue
            yield f"{name:<11} {key} = {_text(value)}"


def differences(first: Table, second: Table) -> Iterator[tuple[str, str, str]]:
    """(field, value in the first, value in the second) of every number that differs."""
    for name in ("order", "afs"):
        one, two = getattr(first, name), getattr(second, name)
        if one != two:
            yield name, str(one), str(two)
    if first.calls != second.calls:
        yield "calls", str(list(first.calls)), str(list(second.calls))
    for name in ("sigmas", "nodes", "weights", "slope_scale", "sigma_scale", "anchor", "memory"):
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
            yield name, _text(one[name]), _text(two[name])
            continue
        for key in {**one[name], **two[name]}:
            if one[name].get(key) != two[name].get(key):
                yield f"{name}.{key}", _text(one[name].get(key)), _text(two[name].get(key))


def numbers(row: np.ndarray, digits: int = 0) -> str:
    """A row of numbers: four decimals, or so many significant digits."""
    return " ".join(f"{value:.{digits}g}" if digits else f"{value:.4f}" for value in row.tolist()) or "-"


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 100 else text[:97] + "..."


def aligned(rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns side by side."""
    kept = list(rows)
    widths = [max(len(row[i]) for row in kept) for i in range(len(kept[0]))]
    for row in kept:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


