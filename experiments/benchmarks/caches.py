"""What block caches add to a network call where they leave nothing out, and what is left where they leave out all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...accelerators.accelerate import accelerate, decelerate, measure
from ...accelerators.contract import Accelerator
from ...accelerators.first_block import FirstBlock
from ...accelerators.reuse import Reuse
from ...accelerators.teacache import TeaCache
from ...solvers import rules
from ...solvers.schedules import logsnr
from ...solvers.solve import solve
from .networks import Subject, subject
from .timing import FEWEST, Machine, Settings, Times

STEPS, CALL, MOST = 12, 0.05, 0.01  # of CALL seconds a cache may take this share
NEVER, ALWAYS = 1e-12, 1e12  # thresholds: changes are compared all the same
MEMBERS: dict[str, Accelerator] = {
    "none": Reuse((STEPS,)),  # what every accelerator has: who stands before the network and knows which call it is
    "first block, nothing left out": FirstBlock(NEVER),
    "first block, of the call, nothing left out": FirstBlock(NEVER, each="call"),
    "first block, all left out": FirstBlock(ALWAYS),
    "TeaCache, nothing left out": TeaCache(NEVER),
    "TeaCache, all left out": TeaCache(ALWAYS),
}


def cells(settings: Settings) -> dict[str, Any]:
    """A cell for each batch; the network's call takes some 50 ms on a processor, where its batch is 1."""
    name = "digits" if settings.small else "dit-7M"
    return {f"{name}-batch-{batch}": partial(measured, name, batch) for batch in settings.some((1, 4))}


def measured(name: str, batch: int, settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """A row for each member: its own milliseconds of a call, its run over a plain one, and the operations it adds."""
    bare, it, rows = subject(name, settings), subject(name, settings), []
    plain, run = solving(bare, batch), solving(it, batch)
    counted = operations(plain)
    for what, member in MEMBERS.items():
        accelerate(it.model, member)
        added = operations(run) - counted
        own = [own_seconds(it, run) for _ in range(max(FEWEST, settings.rounds))]
        times = Times({"with": run, "without": plain}, settings)
        middle = statistics.median(own)
        rows.append({
            "network": name, "batch": batch, "what": what, "own_ms": round(1e3 * middle, 4),
            "own_ms_least": round(1e3 * min(own), 4), "of_50_ms": round(middle / CALL, 5),
            "holds": "yes" if middle <= MOST * CALL else "no", "ratio": times.ratio("with", "without"),
            "plain_ms": round(1e3 * statistics.median(times.seconds["without"]) / STEPS, 4),
            "operations": round(added / STEPS, 2),
        })  # fmt: skip
    decelerate(it.model)
    return rows


def solving(it: Subject, batch: int) -> Callable[[], object]:
    """STEPS calls of so many samples."""
    rule, denoiser, noise = rules.euler(), it.bound(batch), it.noise(batch)
    return partial(solve, rule, denoiser, noise, logsnr(STEPS, it.model.sigma_min, it.model.sigma_max))


def own_seconds(it: Subject, run: Callable[[], object]) -> float:
    """Of a call, beside the network."""
    with torch.no_grad(), measure(it.model, counts=False) as costs:
        run()
    return costs.seconds / len(costs.calls)


def operations(run: Callable[[], object]) -> int:
    """On tensors, in a run that is not the first one."""
    with torch.no_grad():
        run()  # what is made at the first one only
        with Operations() as counted:
            run()
    return counted.count


class Operations(TorchDispatchMode):
    """Counts those on tensors."""

    count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        self.count += 1
        return func(*args, **(kwargs or {}))
