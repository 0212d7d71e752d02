"""Tables of every family, for the tests of the loop and of the table itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import Tensor

import epd

SIGMAS = [40.0, 9.0, 2.5, 0.8, 0.1]
PLAIN = epd.Table([4.0, 2.0, 1.0], [[0.3, 0.8], [0.6, 0.1]], [[0.25, 0.75], [0.5, 0.5]])


def epd_table(afs: bool = False, order: int = 1) -> epd.Table:
    """EPD (order 1) or a plugin, three unsorted points a step, all scales used."""
    rng = np.random.default_rng(0)
    nodes = rng.uniform(0.05, 0.95, (4, 3))
    weights = rng.dirichlet([2.0, 2.0, 2.0], 4)
    slope, sigma = rng.uniform(0.9, 1.1, (2, 4, 3))
    return epd.Table(SIGMAS, nodes, weights, slope, sigma, order=order, afs=afs)


def full_table(
    calls: int | list[int] = 2,
    afs: bool = False,
    width: int = 2,
    past: int = 2,
    seed: int = 0,
    free: bool = False,
    sigmas: Sequence[float] = SIGMAS,
) -> epd.Table:
    """Everything at once: anchor, `past` remembered steps in update and look-ahead, unsorted nodes, both scales.

    Weights are random wherever a slope exists, and sum to one; with `free` they do not, and the anchor has a scale.
    """
    rng = np.random.default_rng(seed)
    steps, columns = len(sigmas) - 1, past * (1 + width)
    row = [calls] * steps if isinstance(calls, int) else calls
    exists = availability(row, afs, width, past)
    anchor, memory = np.zeros(steps), np.zeros((steps, columns))
    lookahead, weights = np.zeros((steps, width, 1 + columns)), np.zeros((steps, width))
    for n in range(steps):
        inside = np.concatenate([[row[n] == 2], exists[n]])
        if inside.any():
            weights[n] = rng.uniform(0.1, 0.4, width)
            ahead = rng.uniform(0.2, 1.0, (width, 1 + columns)) * inside
            lookahead[n] = ahead / ahead.sum(1, keepdims=True)
        memory[n] = np.where(exists[n], rng.uniform(-0.2, 0.2, columns), 0.0)
        anchor[n] = 1 - weights[n].sum() - memory[n].sum()
    nodes = rng.uniform(0.05, 0.95, (steps, width))
    slope = np.ones((steps, width))
    sigma = rng.uniform(0.9, 1.1, (steps, width))
    scale = np.ones(steps)
    if free:
        factors = rng.uniform(0.8, 1.2, (4, steps))
        anchor, weights, memory = anchor * factors[0], weights * factors[1, :, None], memory * factors[2, :, None]
        lookahead, scale = lookahead * factors[3, :, None, None], rng.uniform(0.8, 1.2, steps)
        scale[0] = scale[0] if row[0] == 1 else 1
    return epd.Table(
        sigmas, nodes, weights, slope, sigma, afs=afs, anchor=anchor, memory=memory, lookahead=lookahead, calls=row,
        anchor_scale=scale, consistent=not free,
    )  # fmt: skip


def dense_table(width: int = 1, seed: int = 0, calls: int = 3) -> epd.Table:
    """A first step of no call, then one call a step of a state and `width` points; memory of all steps, free sums."""
    sigmas = SIGMAS if calls == 3 else [40.0 * 400 ** (-n / calls) for n in range(calls + 1)] + [0.01]
    return full_table([0] + [1] * calls, width=width, past=calls, seed=seed, free=True, sigmas=sigmas)


def told_table(width: int = 1) -> epd.Table:
    """The same structure with sums of one, and anchors that are told levels which do not fall from each to the next."""
    table = full_table([0, 1, 1, 1], width=width, past=3)
    return dataclasses.replace(table, anchor_scale=[1.0, 0.5, 2.0, 1.2])


def changed(table: epd.Table, name: str, at: tuple[int, ...], value: float) -> np.ndarray:
    """A field with one number replaced."""
    out = getattr(table, name).copy()
    out[at] = value
    return out


def availability(calls: list[int], afs: bool, width: int, past: int) -> np.ndarray:
    """(N, M) which remembered slopes exist, by replaying the steps."""
    kept: list[list[bool]] = []  # newest first: which of [anchor, fan...] were evaluated
    if afs and calls[0] == 1:
        kept.insert(0, [True] + [False] * width)
    out = np.zeros((len(calls), past * (1 + width)), dtype=bool)
    for n, count in enumerate(calls):
        flat = [slot for step in kept[:past] for slot in step]
        out[n, : len(flat)] = flat
        kept.insert(0, [True] + [count == 2 or count == 1 and any(flat)] * width)
    return out


FAMILIES = {
    "epd": epd_table(),
    "epd, AFS": epd_table(afs=True),
    "plugin": epd_table(order=3),
    "plugin, AFS": epd_table(afs=True, order=3),
    "anchor and memory": full_table(),
    "anchor and memory, AFS": full_table(afs=True),
    "one call": full_table(1),
    "one call, AFS": full_table(1, afs=True),
    "one call, no fan": full_table(1, width=0, past=3),
    "mixed calls": full_table([1, 2, 1, 2]),
    "mixed calls, AFS": full_table([2, 1, 1, 2], afs=True, past=1),
    "dense": dense_table(),
    "dense, no fan": dense_table(0),
    "dense, two points": dense_table(2),
    "free sums": full_table([1, 2, 1, 2], free=True),
    "no first call": full_table([0, 2, 1, 2], past=1),
}


def fan(sigmas: Tensor, nodes: Sequence[float], weights: Sequence[float], order: int = 1) -> epd.Table:
    """The same fan in every step."""
    steps = len(sigmas) - 1
    return epd.Table(sigmas, [nodes] * steps, [weights] * steps, order=order)
