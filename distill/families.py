"""The learned families: which structure a table starts from and which of its numbers are learned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..denoisers.protocol import Model
from ..solvers.availability import availability
from ..solvers.registry import SCHEDULES, Ends, make_sigmas
from ..solvers.rules import uniform_adams_bashforth
from ..solvers.table import Provenance, Table
from .config import DistillConfig, Learned

FAR = 0.95  # of a step, in log sigma

EVERYTHING: tuple[Learned, ...] = ("nodes", "weights", "sigma_scale", "anchor", "memory", "lookahead", "sigmas")


@dataclass(frozen=True)
class Family:
    """One row of the table of families.

    Args:
        step_calls: sequential calls of a step.
        points: K; none: the config's.
        memory: remembered steps; none: all of them.
        order: Adams-Bashforth order of a look-ahead that is not learned, or of a fixed one-call update.
        learn: what is learned.
        cites: where the family comes from.
    """

    step_calls: int
    points: int | None
    memory: int | None
    order: int
    learn: tuple[Learned, ...]
    cites: str


FAMILIES: dict[str, Family] = {
    "default": Family(2, None, 1, 1, EVERYTHING, "arXiv 2507.14797, with anchor, memory and sigmas"),
    "epd": Family(2, None, 0, 1, ("nodes", "weights", "slope_scale", "sigma_scale"), "arXiv 2507.14797"),
    "epd-plugin": Family(2, None, 0, 3, ("nodes", "weights", "slope_scale", "sigma_scale"), "arXiv 2507.14797"),
    "amed": Family(2, 1, 0, 1, ("nodes", "slope_scale", "sigma_scale"), "arXiv 2312.00094"),
    "s4s": Family(1, 1, None, 1, ("anchor", "memory", "sigmas"), "arXiv 2502.17423; BNS arXiv 2403.01329"),
    "ld3": Family(1, 1, None, 3, ("sigmas",), "arXiv 2405.15506"),
}


@dataclass(frozen=True)
class Structure:
    """A family with the config's choices filled in.

    Args:
        calls: sequential calls of each step, (N,).
        width: J, fan points a step.
        memory: remembered steps.
    """

    calls: tuple[int, ...]
    width: int
    memory: int
    order: int
    afs: bool
    learn: tuple[Learned, ...]

    @property
    def columns(self) -> int:
        """M, memory columns."""
        return self.memory * (1 + self.width)


def structure(config: DistillConfig, path: str) -> Structure:
    """What the config asks for, checked: a structure with exactly `config.calls` sequential calls.

    A two-call solver with an odd count drops one call: by AFS on a variance-exploding path, else by a one-call first
    step (an Euler step, as nothing is known before it).

    Raises:
        ValueError: where the choices exclude each other, naming the remedy.
    """
    family = FAMILIES[config.family]
    points = family.points or config.points
    step_calls = config.step_calls or family.step_calls
    if family.points and config.points != DistillConfig.model_fields["points"].default and config.points != points:
        raise ValueError(f"points = {config.points}: family {config.family!r} has {points}; leave points out")
    width = points if step_calls == 2 else points - 1
    odd = config.calls % 2 == 1
    afs = config.afs
    if afs is None:
        afs = path == "ve" and (odd if step_calls == 2 else width > 0)
    if step_calls == 1:
        calls = (1,) * config.calls
    else:
        saved = int(odd)
        calls = (2,) * ((config.calls + saved) // 2)
        if afs != odd:
            calls = (1, *calls[1:]) if odd else (1, *calls)  # an AFS that saves no call would break the count
            afs = False if odd else afs
        if config.calls == 1 and not afs:
            raise ValueError("calls = 1 without AFS is one Euler step: use --calls 2, or --afs True on a ve path")
    if step_calls == 2 and afs and calls[0] == 1:
        raise ValueError(f"calls = {config.calls} is even, so AFS saves no call of two-call steps: leave --afs out")
    remembered = config.memory if config.memory is not None else family.memory
    most = len(calls) - 1 + (afs and calls[0] == 1)
    memory = most if remembered is None else min(remembered, most)
    learn = config.learn if config.learn is not None else family.learn
    return Structure(calls, width, memory, family.order, afs, learn)


@dataclass(frozen=True)
class Start:
    """Where training starts: a schedule, its rho or shift, and whether the last fan point starts far ahead."""

    schedule: str
    number: float
    far: bool = False


# Which start leads to the best optimum depends on the model, the count of calls and the batches, and some updates from
# each tell. Learned sigmas and a fan have many optima; starts whose last point is far ahead find the best ones most
# often, on steps even in time at many calls, on polynomial ones at few, where the same start is tried on other batches.
FIXED_STARTS = {
    "ve": (Start("polynomial", 7.0), Start("time_uniform", 1.0), Start("polynomial", 3.0), Start("logsnr", 1.0)),
    "flow": (Start("flow", 1.0), Start("flow", 3.0), Start("flow", 0.5)),
}
LEARNED_STARTS = {
    "ve": (
        Start("time_uniform", 1.0, True),
        Start("polynomial", 7.0, True),
        Start("polynomial", 7.0, True),
        Start("polynomial", 5.0, True),
        Start("polynomial", 7.0),
        Start("polynomial", 10.0, True),
        Start("time_uniform", 1.0),
        Start("polynomial", 7.0, True),
    ),
    "flow": (Start("flow", 1.0, True), Start("flow", 3.0), Start("flow", 1.0, True), Start("flow", 3.0, True)),
}
FEWEST_STARTS = 2
ADAM_START_COST = 28  # evaluations per sample of all starts' tables together
START_COST = 600  # evaluations per sample of one update of all starts together: cheap structures try more of them


def starts(config: DistillConfig, path: str) -> tuple[Start, ...]:
    """The starts of a run; a given schedule is the only one."""
    learn = config.learn if config.learn is not None else FAMILIES[config.family].learn
    if config.schedule is not None:
        row = SCHEDULES[config.schedule]
        number = {"rho": config.rho, "shift": config.shift}.get(row.shape or "", row.number)
        return (Start(config.schedule, number, "sigmas" in learn),)
    return (LEARNED_STARTS if "sigmas" in learn else FIXED_STARTS)[path]


def start_sigmas(config: DistillConfig, model: Model, num_steps: int, start: Start) -> torch.Tensor:
    """One starting schedule between the ends that the config asks for."""
    return make_sigmas(start.schedule, num_steps, Ends.of(model, config.sigma_min, config.sigma_max), start.number)


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


def initial_table(config: DistillConfig, model: Model, start: Start | None = None) -> Table:
    """A table that training starts from: midpoints, equal weights, Adams-Bashforth where memory is all there is."""
    s = structure(config, model.path)
    n, width = len(s.calls), s.width
    start = start or starts(config, model.path)[0]
    sigmas = start_sigmas(config, model, n, start)
    nodes, shares = start_nodes(sigmas.numpy(), width, far=start.far and "anchor" in s.learn)
    weights, anchor = np.zeros((n, width)), np.zeros(n)
    memory = np.zeros((n, s.columns))
    lookahead = np.zeros((n, width, 1 + s.columns))
    learned_ahead = "lookahead" in s.learn
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
    simplex = not anchor.any() and not {"anchor", "memory"} & set(s.learn)
    return Table(
        sigmas,
        nodes,
        weights,
        order=1 if learned_ahead or s.calls[0] == 1 and not simplex else s.order,
        afs=s.afs,
        anchor=anchor,
        memory=memory if s.columns else None,
        lookahead=lookahead if learned_ahead or (1 in s.calls and width) else None,
        calls=s.calls,
        provenance=Provenance(path=model.path, model=model.name, schedule=start.schedule),
    )
