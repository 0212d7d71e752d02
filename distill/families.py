"""The learned families: which structure a table starts from and which of its numbers are learned.

What of the cited papers a family has, and what is ours:

- `amed` (arXiv 2312.00094): a second call at the geometric mean sigma'^r sigma^(1-r), a factor of its slope, and one of
  the noise level that the network is told. Theirs are predicted for each sample by a small network from features of the
  first call, and learned step by step (objective `steps`); ours are the same for all samples, and learned by the end.
- `s4s` (arXiv 2502.17423; BNS, arXiv 2403.01329): every step weighs all slopes so far, with weights of its own, on
  learned noise levels. BNS frees the weights of states, too, and their sums; ours sum to one, so that a step stays
  consistent. S4S learns weights and levels in turn, with LPIPS and the relaxed objective; ours together, and not
  relaxed unless `relax` says so.
- `ld3` (arXiv 2405.15506): the noise levels of a given solver, here third-order Adams-Bashforth. Theirs also learn the
  levels that the network is told, apart from the grid: `learn` = sigmas, anchor_scale; and they relax the objective,
  for a few numbers cannot fit every noise: `relax` = r. Theirs moves the start of each of a hundred samples together
  with the levels, over the whole training; ours seeks it anew in every update, as there are far more samples.
- `epd`, `epd-plugin` (arXiv 2507.14797): as published, learned by the end unless the objective is `steps`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import GUIDANCE, DistillConfig, Learned

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
        analytic: its first step is analytic and of no call; then the sums of weights are free, too.
    """

    step_calls: int
    points: int | None
    memory: int | None
    order: int
    learn: tuple[Learned, ...]
    cites: str
    analytic: bool = False


USUAL_POINTS = 2  # where they are not measured

FAMILIES: dict[str, Family] = {
    "dense": Family(
        1, None, None, 2, (*EVERYTHING, "anchor_scale"), "S4S (arXiv 2502.17423) with parallel points", analytic=True
    ),
    "two-call": Family(2, None, 1, 1, EVERYTHING, "arXiv 2507.14797, with anchor, memory and sigmas"),
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
        order: see `Family`.
        afs: analytic first slope, in a first step of one call or two.
        learn: what is learned.
        consistent: the weights of an update sum to one.
    """

    calls: tuple[int, ...]
    width: int
    memory: int
    order: int
    afs: bool
    learn: tuple[Learned, ...]
    consistent: bool = True

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
    points = family.points or (USUAL_POINTS if config.points == "auto" else config.points)
    step_calls = config.step_calls or family.step_calls
    if family.points and config.points not in ("auto", points):
        raise ValueError(f"points = {config.points}: family {config.family!r} has {points}; leave points out")
    if family.analytic:
        return _analytic(config, points)
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
    return _structure(config, calls, width, afs)


def looks_ahead(config: DistillConfig) -> bool:
    """Whether a call of family `dense` has earlier slopes, along which it can hold further points."""
    return config.memory != 0 and (config.afs is not False or config.calls > 1)


def _analytic(config: DistillConfig, points: int) -> Structure:
    """A first step of no call, where AFS is not forbidden, and then one-call steps; weights are free."""
    if config.step_calls == 2:
        raise ValueError(f"step_calls = 2: family {config.family!r} has one-call steps; take family 'two-call'")
    calls = (1,) * config.calls if config.afs is False else (0, *(1,) * config.calls)
    if points > 1 and not looks_ahead(config):
        raise ValueError(
            f"points = {points} in one call look ahead along earlier slopes, of which memory = {config.memory}, "
            f"calls = {config.calls} and afs = {config.afs} leave none: give points = 1, or memory and calls"
        )
    return _structure(config, calls, points - 1, False, consistent=False)


def _structure(
    config: DistillConfig, calls: tuple[int, ...], width: int, afs: bool, consistent: bool = True
) -> Structure:
    """With as many remembered steps as there are, and as the config and its family ask for."""
    family = FAMILIES[config.family]
    remembered = config.memory if config.memory is not None else family.memory
    most = len(calls) - 1 + (afs and calls[0] == 1)
    memory = most if remembered is None else min(remembered, most)
    learn = config.learn if config.learn is not None else family.learn
    if config.learn_guidance:
        learn = tuple(dict.fromkeys((*learn, *GUIDANCE)))
    return Structure(calls, width, memory, family.order, afs, learn, consistent)
