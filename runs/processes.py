"""Several processes that work as one: parts are dealt out, results are summed in one fixed order."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """The processes of this run: one by default, or those of torchrun through accelerate.

    Every part is computed with the same shapes wherever it lands, and sums run over parts in order, not over
    processes: the number of processes does not change the result.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_accelerate(cls) -> Workers:
        """From accelerate's PartialState, which also starts the process group.

        Raises:
            ValueError: where a launcher started several processes that accelerate does not join, as each would then
                train alone and overwrite the others.
        """
        from accelerate import PartialState

        state, world = PartialState(cpu=not torch.cuda.is_available()), int(os.environ.get("WORLD_SIZE", "1"))
        if state.num_processes != world:
            raise ValueError(
                f"WORLD_SIZE = {world}, but accelerate joins {state.num_processes} processes: start with torchrun and "
                "without ACCELERATE_USE_CPU"
            )
        return cls(state.process_index, state.num_processes)

    def mean(self, parts: int, size: int, work: Callable[[int], Tensor]) -> Tensor:
        """Mean over parts 0..parts-1 of work(part) (size,), float64, each part computed by one process."""
        rows = torch.zeros(parts, size, dtype=torch.float64)
        for part in range(self.rank, parts, self.count):
            rows[part] = work(part).cpu()
        if self.count > 1:
            from accelerate import PartialState
            from accelerate.utils import reduce

            # Everybody's zeros but for the rows of one: the sum is exact, whatever order it is taken in.
            rows = cast(Tensor, reduce(rows.to(PartialState().device), "sum")).cpu()
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return total / parts

    def wait(self) -> None:
        """Until everybody is here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
