"""What a solver costs around its network, operation by operation: `solve` on `digits`, and `EPDScheduler.step`.

The network is replaced by one that returns its input, so that all that is left is ours. Operations are counted exactly;
microseconds are those of a profiler, which makes Python look slower than it is, so their shares count, not their sum.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...denoisers.digits import classes_of
from ...denoisers.networks import NetworkDenoiser, Rows
from ...denoisers.noise import unit_noise
from ...denoisers.preconditioning import v_prediction
from ...denoisers.timesteps import Timesteps, linear_beta
from ...pipelines.scheduler import EPDScheduler
from ...solvers.solve import solve
from ...solvers.table import Table
from .timing import Machine, Settings

RESULTS = Path(__file__).resolve().parents[1] / "results"
ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 8, 8)


class ByFile(TorchDispatchMode):
    """Counts operations by the file of ours that asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        frame = sys._getframe(1)
        while frame.f_back is not None and not _ours(frame.f_code.co_filename):
            frame = frame.f_back
        self.counts[_name(frame.f_code.co_filename)] += 1
        return func(*args, **(kwargs or {}))


def _ours(filename: str) -> bool:
    if filename.startswith(("~", "<")):  # built in, or made by a dataclass
        return False
    path = Path(filename).resolve()
    return path.is_relative_to(ROOT) and ".venv" not in path.parts


def _name(filename: str) -> str:
    return Path(filename).resolve().relative_to(ROOT).as_posix() if _ours(filename) else "elsewhere"


def microseconds(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Of one round, by the file of ours; what libraries take is put down to the file of ours that called them."""
    profile = cProfile.Profile()
    for _ in range(3):
        work()
    profile.enable()
    for _ in range(rounds):
        work()
    profile.disable()
    own: Counter[str] = Counter()
    for (filename, _, _), (_, _, total, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if _ours(filename):
            own[_name(filename)] += total
        else:
            for (caller, _, _), (*_, share, _) in callers.items():
                own[_name(caller)] += share
    return {name: round(1e6 * value / rounds, 1) for name, value in own.most_common() if value > 0}


def profiled(work: Callable[[], object], rounds: int) -> tuple[Counter[str], dict[str, float]]:
    """Operations and microseconds of one run, by file."""
    with torch.no_grad():
        work()
        with ByFile() as operations:
            work()
        return operations.counts, microseconds(work, rounds)


def free(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    """A network that costs nothing."""
    return x


def solving(table: Table, batch: int) -> Callable[[], object]:
    """`solve` of so many samples."""
    precondition = v_prediction(Timesteps(linear_beta(1000)))
    model = NetworkDenoiser(free, precondition, SHAPE, 0.01, 40.0, null={"class_labels": torch.zeros(1).long()})
    bound, noise, rule = model.bind(classes_of(range(batch))), unit_noise(range(batch), SHAPE), table.rule()
    return lambda: solve(rule, bound, noise, table.sigmas)


def stepping(table: Table, batch: int) -> Callable[[], object]:
    """A run of `EPDScheduler` as a pipeline's loop makes it, one point a call."""
    scheduler = EPDScheduler.from_table(table, {"prediction_type": "v_prediction", "beta_schedule": "linear"})
    with warnings.catch_warnings():  # of what `epd.enable` would do better
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(table.nfe)
    noise = unit_noise(range(batch), SHAPE)

    def run() -> Tensor:
        scheduler._forget()
        x = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            x = scheduler.step(x, timestep, x, return_dict=False)[0]
        return x

    return run


def cells(settings: Settings) -> dict[str, Any]:
    """A cell for each of the two loops and batches."""
    loops = {"solve": solving, "step": stepping}
    return {
        f"{name}-batch-{batch}": partial(measure, name, make, batch)
        for name, make in loops.items()
        for batch in settings.some((1, 64))
    }


def measure(name: str, make: Any, batch: int, settings: Settings, machine: Machine) -> list[dict[str, Any]]:  # noqa: ANN401
    """A row for each file of ours: its operations and microseconds, of one run."""
    table = Table.load(RESULTS / "tables" / "digits-two-call-5.json")
    calls = table.depth if name == "solve" else table.nfe + table.moves_first_call
    found = profiled(make(table, batch), settings.rounds)
    return [
        {"loop": name, "batch": batch, "calls": calls, "file": file, "operations": found[0][file], "microseconds": us}
        for file, us in found[1].items()
    ]
