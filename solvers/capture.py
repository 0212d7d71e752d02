"""Trajectories replayed from CUDA graphs: no Python, no launches, the numbers of `solve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..denoisers.protocol import Denoiser, coefficient_device, expand
from .answers import MakeAnswer, batched
from .graphs import MakeGraph, Outputs
from .replay import Replays
from .schedules import checked_sigmas
from .solve import solve
from .walk import History, Rule, Steps, drive, walk

Conditions: TypeAlias = Mapping[str, Tensor]
Bind: TypeAlias = Callable[[Conditions], Denoiser]


def capture(
    rule: Rule,
    denoiser: Denoiser | Bind,
    shape: Sequence[int],
    dtype: torch.dtype,
    sigmas: Tensor | ArrayLike,
    whole: bool = False,
    conditions: Conditions | None = None,
    device: torch.device | str | None = None,
    answer: MakeAnswer = batched,
    most: int = 4,
    make_graph: MakeGraph | None = None,
) -> Captured:
    """`solve` as a callable noise -> x_N that replays CUDA graphs: one for each solver step, or one for all of them.

    The network and all that it reads must stay where they are: weights may change in place, conditions are handed to
    the callable. Calls with other shapes or dtypes are recorded when they first come. Results are new tensors, which
    nobody checks for NaN. Without gradients; call it in `torch.no_grad()`. What no graph can hold (values that are read
    back, shapes that depend on values, tensors that are not on a CUDA device) runs as `solve` does, after one warning
    that names the call.

    Args:
        denoiser: with `conditions` a function of them that returns a denoiser, `lambda c: model.bind(c, guidance)`:
            what a denoiser prepares of its conditions has to happen inside of the graph.
        shape: (B, *S), recorded at once.
        dtype: of the noise.
        sigmas: as `solve` takes them.
        whole: one graph for the trajectory; False: one for each step, which shares the memory of the others.
        conditions: tensors by name, an example of those that the callable is given.
        device: of the noise; none: CUDA where there is any.
        answer: as `solve` takes it; `auto()` measures before recording.
        most: shapes that are kept; the one that was not used for longest goes.
        make_graph: none: CUDA graphs; `CompiledGraph` fuses kernels, too, on any device.
    """
    captured = Captured(rule, denoiser, sigmas, answer, whole, make_graph, most)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        captured(torch.zeros(*shape, dtype=dtype, device=device), conditions)
    return captured


class Captured:
    """Made by `capture`."""

    def __init__(
        self,
        rule: Rule,
        denoiser: Denoiser | Bind,
        sigmas: Tensor | ArrayLike,
        answer: MakeAnswer,
        whole: bool,
        make_graph: MakeGraph | None,
        most: int,
    ) -> None:
        self._run = _Run(rule, denoiser, checked_sigmas(sigmas), answer)
        program = None if whole else self._run.by_steps
        self.replays = Replays("the solver", self._run.whole, program, make_graph, most)

    def __call__(self, noise: Tensor, conditions: Conditions | None = None) -> Tensor:
        """x_N (B, *S), a new tensor, of unit noise (B, *S).

        Args:
            conditions: of these samples, under the names and with the shapes of the recorded ones.
        """
        self._run.levels_on(noise.device)  # moved before anything is recorded
        return self.replays(noise, None if conditions is None else dict(conditions))


@dataclass(frozen=True)
class _Run:
    rule: Rule
    denoiser: Any  # Denoiser | Bind
    sigmas: Tensor
    answer: MakeAnswer

    def __post_init__(self) -> None:
        object.__setattr__(self, "_levels", {})

    def levels_on(self, device: torch.device) -> Tensor:
        """The noise levels beside states on this device."""
        levels: dict[torch.device, Tensor] = vars(self)["_levels"]
        if device not in levels:
            levels[device] = self.sigmas.to(coefficient_device(device))
        return levels[device]

    def bound(self, conditions: Conditions | None) -> Denoiser:
        return self.denoiser if conditions is None else self.denoiser(conditions)

    def whole(self, noise: Tensor, conditions: Conditions | None) -> Tensor:
        """The trajectory's end."""
        levels = self.levels_on(noise.device)
        return solve(self.rule, self.bound(conditions), noise, levels, self.answer, check=False)

    def by_steps(self, make: MakeGraph, arguments: Sequence[Any]) -> Outputs:
        """Records a graph for each step, which reads what those before it left."""
        noise, conditions = arguments
        levels = self.levels_on(noise.device)
        x, history = make().capture(lambda: self._step(0, noise * expand(levels[0], noise), (), conditions))
        for n in range(1, len(levels) - 1):
            x, history = make().capture(lambda n=n, x=x, past=history: self._step(n, x, past, conditions))
        return x

    def _step(self, n: int, x: Tensor, history: History, conditions: Conditions | None) -> tuple[Tensor, History]:
        """The state after step n, and what the rule remembers then."""
        kept: list[History] = []

        def remembering(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
            mean, history = yield from self.rule(x, sigma, sigma_next, n, history)
            kept.append(history)
            return mean, history

        asking = walk(remembering, x, self.levels_on(x.device), n, history)
        state = next(drive(asking, self.answer(self.bound(conditions))))
        return state.x, kept[-1]
