"""A family's table before training."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..denoisers.protocol import Model
from ..solvers.availability import availability
from ..solvers.rules import adams_bashforth, uniform_adams_bashforth
from ..solvers.table import Provenance, Table
from .config import DistillConfig
from .families import Structure, structure
from .starts import Look, Start, start_sigmas, starts

FAR = 0.95  # of a step, in log sigma


def even_nodes(sigmas: np.ndarray, width: int) -> np.ndarray:
    """Nodes (N, J) whose sigmas divide each step evenly, so that equal weights are second order.

    Even in sigma, not in log sigma: a look-ahead to the geometric middle of a large step lands at a noise level that
    the state does not have, where slopes are an order of magnitude too steep; training from there finds bad optima.
    """
    fractions = (np.arange(width) + 1) / (width + 1)
    high, low = sigmas[:-1, None], sigmas[1:, None]
    return np.log(high / (high + fractions * (low - high))) / np.log(high / low)


def start_nodes(sigmas: np.ndarray, width: int, far: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (N, J) and weights (J,) that training starts from.

    With `far` and more than one point, the last sits near the step's end and starts with no weight: what the network
    sees there corrects a large step, and starts without such a point end in optima that are a fifth worse.
    """
    if not far or width < 2:
        return even_nodes(sigmas, width), np.full(width, 1 / max(width, 1))
    nodes = np.concatenate([even_nodes(sigmas, width - 1), np.full((len(sigmas) - 1, 1), FAR)], 1)
    return nodes, np.append(np.full(width - 1, 1 / (width - 1)), 0.0)


def initial_table(
    config: DistillConfig, model: Model, start: Start | None = None, look: Look | None = None
) -> Table:
    """A table that training starts from: midpoints, equal weights, Adams-Bashforth where memory is all there is.

    Args:
        start: one of `starts`; none: the first.
        look: of `look_at`, shared between starts.
    """
    start = start or starts(config, model.path)[0]
    s = structure(config.model_copy(update={"afs": False}) if start.asks else config, model.path)
    sigmas = start_sigmas(config, model, len(s.calls), start, look).numpy()
    nodes, shares = start_nodes(sigmas, s.width, far=start.far and "anchor" in s.learn)
    weights, anchor, memory, lookahead = (
        _weights(s, sigmas, shares) if s.consistent else _free_weights(s, sigmas, start.order)
    )
    learned_ahead = "lookahead" in s.learn
    simplex = not anchor.any() and not {"anchor", "memory"} & set(s.learn)
    return Table(
        sigmas,
        nodes,
        weights,
        order=1 if learned_ahead or s.calls[0] < 2 and not simplex else s.order,
        afs=s.afs,
        anchor=anchor,
        memory=memory if s.columns else None,
        lookahead=lookahead if learned_ahead or (1 in s.calls and s.width) else None,
        calls=s.calls,
        consistent=s.consistent,
        provenance=Provenance(path=model.path, model=model.name, schedule=start.schedule),
    )


Weights = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # fan, anchor, memory, look-ahead


def _weights(s: Structure, sigmas: np.ndarray, shares: np.ndarray) -> Weights:
    n, width = len(s.calls), s.width
    weights, anchor = np.zeros((n, width)), np.zeros(n)
    memory, lookahead = np.zeros((n, s.columns)), np.zeros((n, width, 1 + s.columns))
    for i, u in enumerate(availability(n, width, s.columns, s.calls, s.afs)):
        fan = [j for j, inside in enumerate(u.lookahead) if inside]
        if s.calls[i] == 2:
            weights[i] = shares
            lookahead[i, :, 0] = 1
        else:
            anchor[i] = 1 if not fan else 0.5
            weights[i, fan] = 0.5 * shares[fan]
            if fan:
                lookahead[i, fan, 1] = 1
            if not width and s.order > 1:
                past = [0, *(k for k in u.memory)][: s.order]
                ab = uniform_adams_bashforth(len(past))
                anchor[i], memory[i, : len(past) - 1] = ab[0], ab[1:]
    return weights, anchor, memory, lookahead


def _free_weights(s: Structure, sigmas: np.ndarray, order: int) -> Weights:
    """First- or second-order multistep over the anchors; fan points lie along the last slope and have no weight yet."""
    n, width = len(s.calls), s.width
    weights, anchor = np.zeros((n, width)), np.ones(n)
    memory, lookahead = np.zeros((n, s.columns)), np.zeros((n, width, 1 + s.columns))
    if s.calls[0] == 0:
        # At first a denoised state is nothing beside the noise: the slope is x / sigma, on every path.
        anchor[0] = math.sqrt(1 + sigmas[0] ** 2) / sigmas[0]
    for i in range(1, n):
        if s.columns:
            lookahead[i, :, 1] = 1
        if s.columns and order > 1:
            past, here, there = torch.from_numpy(sigmas[[i, i - 1]]), *torch.from_numpy(sigmas[i : i + 2])
            anchor[i], memory[i, 0] = adams_bashforth(past, here, there).tolist()
    return weights, anchor, memory, lookahead
