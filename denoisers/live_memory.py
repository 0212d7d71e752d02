"""What is alive in main memory while something runs: every tensor that an operation returns, until it is collected."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, each once however many views it has.

    Args:
        largest: bytes of the largest storage so far; `peak`: of all that lived together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._users: dict[int, int] = {}  # storage -> tensors that look at it

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._born(leaf)
        return out

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()  # not its address: what is only pretended to be made has none
        self.largest = max(self.largest, size)
        self._users[place] = self._users.get(place, 0) + 1
        if self._users[place] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._died, place, size)

    def _died(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self.now -= size
            del self._users[place]


def measured(work: Callable[[], object]) -> LiveMemory:
    """What lived while `work` ran, without gradients."""
    with torch.no_grad(), LiveMemory() as memory:
        result = work()
    del result
    return memory
