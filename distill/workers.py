"""Several processes that work as one: parts are dealt out, results are summed in one fixed order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
        """From accelerate's PartialState, which also starts the process group."""
        from accelerate import PartialState

        state = PartialState()
        return cls(state.process_index, state.num_processes)

    def mean(self, parts: int, work: Callable[[int], Tensor]) -> Tensor:
        """Mean over parts 0..parts-1 of work(part) (P,), each computed by one process."""
        mine = {part: work(part) for part in range(self.rank, parts, self.count)}
        if self.count == 1:
            rows = torch.stack([mine[part] for part in range(parts)])
        else:
            from accelerate import PartialState
            from accelerate.utils import reduce

            size = next(iter(mine.values())).shape if mine else (0,)
            rows = torch.zeros(parts, *size, dtype=torch.float64)
            for part, value in mine.items():
                rows[part] = value.cpu()
            rows = reduce(rows.to(PartialState().device), "sum")
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return total.cpu() / parts

    def wait(self) -> None:
        """Until everybody is here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
