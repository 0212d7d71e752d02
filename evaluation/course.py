"""One batch of trajectories beside the converged ones: states, every question that was asked, every single step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.protocol import Denoiser, coefficient_device, expand
from ..solvers.answers import batched
from ..solvers.exact import converged
from ..solvers.rules import analytic_slope
from ..solvers.table import Table
from ..solvers.walk import Answer, Ask, Restart, Rule, walk

ANCHOR, UPDATE = "anchor", "update"
DENSE = 32  # intervals of the converged trajectory, at least


@dataclass(frozen=True)
class Place:
    """A point where a slope was asked for.

    Args:
        step, stage: its `Site`.
        name: `anchor` for the state itself, `point 1`, `point 2`, ... for look-ahead points.
        sigma: of the point.
        told: the noise level that the network was told there.
    """

    step: int
    stage: int
    name: str
    sigma: float
    told: float


@dataclass(frozen=True)
class Course:
    """What a solver did with a batch, N steps, and what the ODE does.

    Args:
        sigmas: (N+1,) float64.
        states: (N+1, B, *S).
        exact: (N+1, B, *S), the converged trajectory from the same noise at the same sigmas.
        dense: (M+1, B, *S), the same with points between, evenly in log sigma.
        single: (N, B, *S), where each step leads to that begins on the converged trajectory, with the slopes that
            such steps before it have left in the memory.
        exact_slopes: (N+1, B, *S), of the ODE on the converged trajectory.
        asks, slopes: every question of the solver and its answer, in order.
        analytic: (B, *S), the first slope where it is analytic.
    """

    sigmas: Tensor
    states: Tensor
    exact: Tensor
    dense: Tensor
    single: Tensor
    exact_slopes: Tensor
    asks: Sequence[Ask]
    slopes: Sequence[Tensor]
    analytic: Tensor | None

    def updates(self) -> Tensor:
        """(N, B, *S): the mean slope that each step took."""
        return self._per_sigma(self.states)

    def exact_means(self) -> Tensor:
        """(N, B, *S): the mean slope of the converged trajectory over each step."""
        return self._per_sigma(self.exact)

    def _per_sigma(self, states: Tensor) -> Tensor:
        states = states.cpu().double()
        return states.diff(dim=0) / self.sigmas.cpu().diff().reshape(-1, *[1] * (states.ndim - 1))


def follow(
    rule: Rule, denoiser: Denoiser, noise: Tensor, sigmas: Tensor, tolerance: float, table: Table | None
) -> Course:
    """Solves a batch, the ODE beside it, and every step once more from the converged trajectory.

    Args:
        noise: unit variance, (B, *S).
        sigmas: (N+1,), the last above 0.
        tolerance: of the converged trajectory.
        table: that the rule is of.

    Raises:
        FloatingPointError: where a state is not finite, naming the step, or the ODE cannot be solved.
    """
    levels = sigmas.to(coefficient_device(noise.device))
    pieces = max(1, -(-DENSE // (len(levels) - 1)))
    dense = converged(denoiser, noise, finer(levels, pieces), tolerance, tolerance)
    exact, answer = dense[::pieces], batched(denoiser)
    asks: list[Ask] = []
    slopes: list[Tensor] = []

    def recording(ask: Ask) -> Tensor:
        asks.append(ask)
        slopes.append(answer(ask))
        return slopes[-1]

    start = noise * expand(levels[0], noise)
    states = torch.stack([start, *_states(rule, recording, start, levels)])
    for n, state in enumerate(states):
        if not bool(state.isfinite().all()):
            raise FloatingPointError(f"the state is not finite after step {n - 1} (sigma {float(levels[n]):.6g})")
    single = torch.stack(_states(rule, answer, exact[0], levels, exact))
    on_exact = torch.stack([answer(Ask(x[None], s[None]))[0] for x, s in zip(exact, levels, strict=True)])
    analytic = None
    if table is not None and table.moves_first_call:
        analytic = analytic_slope(start, levels[0])
    return Course(levels, states, exact, dense, single, on_exact, asks, slopes, analytic)


def finer(sigmas: Tensor, pieces: int) -> Tensor:
    """(N pieces + 1,): every interval split evenly in log sigma; `[::pieces]` are the sigmas themselves."""
    share = torch.arange(pieces, dtype=sigmas.dtype, device=sigmas.device) / pieces
    inner = sigmas[:-1, None] * (sigmas[1:] / sigmas[:-1])[:, None] ** share
    inner[:, 0] = sigmas[:-1]
    return torch.cat([inner.flatten(), sigmas[-1:]])


def _states(
    rule: Rule, answer: Answer, x: Tensor, sigmas: Tensor, restarts: Tensor | None = None
) -> list[Tensor]:
    """The N states after each step; with `restarts` (N+1, B, *S) each next step begins at that of its number."""
    states: list[Tensor] = []
    asking, reply = walk(rule, x, sigmas), None
    while True:
        try:
            event = asking.send(reply)
        except StopIteration:
            return states
        if isinstance(event, Ask):
            reply = answer(event)
        else:
            states.append(event.x)
            reply = None if restarts is None else Restart(restarts[event.step])


def places(asks: Sequence[Ask], sigmas: Tensor, table: Table | None) -> list[list[Place]]:
    """Per question, its points by name."""
    out, seen = [], dict.fromkeys(range(len(sigmas) - 1), 0)
    for ask in asks:
        n, named = ask.site.step, []
        # Points that a table never evaluates keep their number.
        numbers = [j + 1 for j, inside in enumerate(table.used[n].lookahead) if inside] if table is not None else []
        for sigma, told in zip(ask.sigma.tolist(), ask.network_sigma.tolist(), strict=True):
            name = ANCHOR
            if sigma != float(sigmas[n]):
                seen[n] += 1
                name = f"point {numbers[seen[n] - 1] if numbers else seen[n]}"
            named.append(Place(n, ask.site.stage, name, sigma, told))
        out.append(named)
    return out
