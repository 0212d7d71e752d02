"""Several processes that work as one: parts are dealt out, results are summed in one fixed order, failures shared."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# A process may wait for another one's teacher block, which takes long for a large model; a process that dies is
# noticed by its closed connection, whatever this is.
PATIENCE = timedelta(hours=6)
NOT_FINITE, BROKEN = 1, 2  # how a process failed: trainers go on after the first, and must do so together
MESSAGE_BYTES = 500


class ProcessError(ValueError):
    """Another process failed, and the message says which one and how; or it is gone."""


@functools.cache
def _connections() -> dist.ProcessGroup | None:
    """A group that notices at once where one of its processes is gone: gloo. NCCL would wait for it."""
    if dist.get_backend() == dist.Backend.GLOO:
        return None
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))


def own_device(device: str | None) -> str | None:
    """Where this process computes: `device`, but one of its own where a launcher started several on CUDA.

    Raises:
        ValueError: for an index that belongs to another process.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.cuda.is_available()
    if not several or device not in (None, "cuda") and not device.startswith("cuda:"):
        return device
    own = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    if device not in (None, "cuda", own):
        raise ValueError(f"device = {device!r}, but this process of several computes on {own}: leave the device out")
    return own


@dataclass(frozen=True)
class Workers:
    """The processes of this run: one by default, or those of torchrun through accelerate.

    Every part is computed with the same shapes wherever it lands, and sums run over parts in order, not over
    processes: the number of processes does not change the result. An exception in one process is raised in all of
    them, so that nobody waits for a process that has gone on to something else.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_accelerate(cls) -> Workers:
        """From accelerate's PartialState, which also starts the process group and takes the process's own device.

        Call it before a model is loaded, or all processes load theirs onto the first device.

        Raises:
            ValueError: where a launcher started several processes that accelerate does not join, as each would then
                train alone and overwrite the others.
        """
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if state.num_processes != world:
            raise ValueError(
                f"WORLD_SIZE = {world}, but accelerate joins {state.num_processes} processes: start with torchrun and "
                "without ACCELERATE_USE_CPU"
            )
        return cls(state.process_index, state.num_processes)

    def mean(self, parts: int, size: int, work: Callable[[int], Tensor]) -> Tensor:
        """Mean over parts 0..parts-1 of work(part) (size,), float64, each part computed by one process.

        Raises:
            FloatingPointError: in every process, where `work` raised it in one and nothing worse in another.
            ProcessError: where `work` raised anything else in another process; its own error is raised there.
        """
        rows = torch.zeros(parts, size, dtype=torch.float64)

        def own() -> None:
            for part in range(self.rank, parts, self.count):
                rows[part] = work(part).cpu()

        _, error = self._attempt(own)
        # Everybody's zeros but for the rows of one: the sum is exact, whatever order it is taken in.
        rows = self._shared(rows, error)
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return total / parts

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns in this process, once all are done with theirs; raises what `mean` does."""
        value, error = self._attempt(work)
        self._shared(torch.zeros(0, dtype=torch.float64), error)
        return cast(T, value)

    def wait(self) -> None:
        """Until everybody is here."""
        self.together(lambda: None)

    def _attempt(self, work: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """What `work` returns, or how it failed where others have to hear of that first."""
        if self.count == 1:
            return work(), None
        try:
            return work(), None
        except Exception as error:
            return None, error

    def _shared(self, values: Tensor, error: Exception | None) -> Tensor:
        """The sum of everybody's values; how each of them fared travels along, so that all learn of a failure at once.
        """
        states = torch.zeros(self.count, dtype=torch.float64)
        if error is not None:
            states[self.rank] = NOT_FINITE if isinstance(error, FloatingPointError) else BROKEN
        total, states = self._sum(torch.cat([values.flatten(), states])).split([values.numel(), self.count])
        if bool(states.any()):
            self._fail(error, states)
        return total.reshape(values.shape)

    def end(self) -> None:
        """Takes leave of the others: a process that exits while connected can abort those that are not done yet."""
        if self.count > 1:
            from accelerate import PartialState

            _connections.cache_clear()
            PartialState().destroy_process_group()

    def _fail(self, error: Exception | None, states: Tensor) -> NoReturn:
        """Raises the same kind of error in every process: the worst there is."""
        messages, worst = self._messages("" if error is None else f"{type(error).__name__}: {error}"), states.max()
        if error is not None and states[self.rank] == worst:
            raise error
        first = int((states == worst).nonzero()[0])
        text = f"process {first} of {self.count} failed: {messages[first]}"
        raise (FloatingPointError if int(worst) == NOT_FINITE else ProcessError)(text)

    def _messages(self, text: str) -> list[str]:
        """What each process has to say."""
        own = text.encode()[:MESSAGE_BYTES]
        rows = torch.zeros(self.count, MESSAGE_BYTES, dtype=torch.float64)
        rows[self.rank, : len(own)] = torch.tensor(list(own), dtype=torch.float64)
        return [bytes(row[row > 0].int().tolist()).decode(errors="ignore") for row in self._sum(rows)]

    def _sum(self, values: Tensor) -> Tensor:
        """Over all processes, in place.

        Raises:
            ProcessError: where one of them was killed, or its machine.
        """
        if self.count > 1:
            try:
                dist.all_reduce(values, group=_connections())
            except RuntimeError as error:
                raise ProcessError(
                    f"process {self.rank} of {self.count} has lost another one, which was killed or whose machine is "
                    f"gone ({str(error).splitlines()[0]}): end them all and start them again, distill and refine "
                    "with --resume; they go on from what is on disk"
                ) from error
        return values
