"""Works timed in turns, each beside its floor: the bare network calls that it makes, and what the machine can do."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from ...denoisers.live_memory import LiveMemory
from ...solvers.auto import seconds_of

Work = Callable[[], object]
Call = tuple[tuple[Any, ...], dict[str, Any]]
WARM_UPS, FEWEST = 2, 3


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Args:
        rounds: of all works of a measurement, at most; the median counts.
        seconds: that a measurement may take, once it has FEWEST rounds.
        small: the smallest networks and ranges only, to see that everything runs.
        device: of the networks.
    """

    rounds: int = 40
    seconds: float = 12.0
    small: bool = False
    device: torch.device = torch.device("cpu")

    def some(self, values: Sequence[Any]) -> Sequence[Any]:
        """These values, or the first of them where little is measured."""
        return values[:1] if self.small else values


@dataclass(frozen=True)
class Machine:
    """What a machine can do at most, measured: a product of large matrices, a copy of a large tensor.

    Args:
        flops: per second, in the networks' own type.
        bytes: per second, those read and those written.
    """

    flops: float
    bytes: float

    @classmethod
    def measured(cls, settings: Settings, dtype: torch.dtype = torch.float32) -> Machine:
        """The best of some tries."""
        device = settings.device
        big = device.type == "cuda" and not settings.small
        size, numbers = (8192, 2**28) if big else (64, 2**12) if settings.small else (1536, 2**24)
        a, source = torch.ones(size, size, dtype=dtype, device=device), torch.ones(numbers, dtype=dtype, device=device)
        target = torch.empty_like(source)
        works = {"product": lambda: a @ a, "copy": lambda: target.copy_(source)}
        best = {name: min(seconds_of(work, device) for _ in range(8)) for name, work in works.items()}
        return cls(2 * size**3 / best["product"], 2 * source.nbytes / best["copy"])


def keep_freed_memory() -> None:
    """Asks glibc to keep up to 1 GiB that was freed (mallopt M_MMAP_THRESHOLD, M_TRIM_THRESHOLD); elsewhere nothing.

    On a processor about a quarter of a small network's time is otherwise spent on returning pages to the system and
    faulting them in again, by chance more in one work or the other.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 1 << 25)
            mallopt(-1, 1 << 30)


class Times:
    """Seconds of each work in each round, without gradients.

    A round makes all of them, and then again in the opposite order, so that a machine that drifts slows all alike; a
    ratio is that of one round.
    """

    def __init__(self, works: Mapping[str, Work], settings: Settings) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in works}
        with torch.no_grad():
            for _ in range(1 if settings.small else WARM_UPS):
                for work in works.values():
                    work()
            began = time.perf_counter()
            for done in range(settings.rounds):
                if done >= FEWEST and time.perf_counter() - began > settings.seconds:
                    break
                for name, both in self._round(works, settings.device).items():
                    self.seconds[name].append(both)

    def _round(self, works: Mapping[str, Work], device: torch.device) -> dict[str, float]:
        found = dict.fromkeys(works, 0.0)
        for name in [*works, *reversed([*works])]:
            found[name] += seconds_of(works[name], device) / 2
        return found

    def row(self, name: str, floor: str | None = None) -> dict[str, float]:
        """Median and quartiles of a work in milliseconds, and of its ratio to its floor, round by round."""
        out = _spread("ms", [1e3 * s for s in self.seconds[name]])
        if floor is not None:
            out["floor_ms"] = round(1e3 * statistics.median(self.seconds[floor]), 4)
            out |= _spread("ratio", self.ratios(name, floor))
        return {**out, "rounds": len(self.seconds[name])}

    def ratios(self, name: str, floor: str) -> list[float]:
        """Of two works, round by round."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[floor], strict=True)]

    def ratio(self, name: str, floor: str) -> float:
        """The median of `ratios`."""
        return round(statistics.median(self.ratios(name, floor)), 4)


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {name: round(middle, 4), f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}


def recorded(network: nn.Module, work: Work) -> list[Call]:
    """The calls of a network that `work` makes."""
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)))

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        work()
    finally:
        handle.remove()
    return calls


def bare(network: nn.Module, calls: Sequence[Call]) -> Work:
    """These calls and nothing else."""

    def call() -> None:
        for args, kwargs in calls:
            network(*args, **kwargs)

    return call


def bound(network: nn.Module, calls: Sequence[Call], machine: Machine) -> float:
    """Milliseconds below which these calls cannot be: their FLOPs at the machine's best, or the bytes of the weights
    and of what goes in and comes out, once a call, whichever takes longer.
    """
    weights = sum(p.nbytes for p in [*network.parameters(), *network.buffers()])
    least: dict[Hashable, float] = {}  # by shapes: most calls of a run are alike, and counting takes long
    keys = [tuple(leaf.shape for leaf in tree_leaves(call) if isinstance(leaf, Tensor)) for call in calls]
    for key, (args, kwargs) in zip(keys, calls, strict=True):
        if key not in least:
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), counter:
                out = network(*args, **kwargs)
            moved = weights + sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
            least[key] = max(counter.get_total_flops() / machine.flops, moved / machine.bytes)
    return round(1e3 * sum(least[key] for key in keys), 5)


def peak_bytes(work: Work, device: torch.device) -> int:
    """Bytes of all tensors that live together at the peak of `work`, beside those that were there before."""
    if device.type != "cuda":
        with LiveMemory() as memory:
            kept = work()
        del kept
        return memory.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before
