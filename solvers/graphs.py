"""Graphs: what a function does to tensors, recorded once and done again to the same tensors without running Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Outputs: TypeAlias = Any  # tensors in tuples, lists and dicts, at any depth
WARM_UPS = 2  # runs before recording: allocators, autotuning, and what a function computes once and keeps

aten = torch.ops.aten
WAITS = frozenset((aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default))
VALUES_DECIDE = frozenset((
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default,
))  # fmt: skip
COPIES = frozenset((aten._to_copy.default, aten.copy_.default))


class Graph(Protocol):
    """Records a function without arguments and does again what it did."""

    def capture(self, fn: Callable[[], Outputs]) -> Outputs:
        """Records `fn` and runs it; every later `replay` puts new values into the tensors that are returned here.

        Raises:
            RuntimeError: where it can't be recorded.
        """
        ...

    def replay(self) -> None:
        """Does to the same tensors what `fn` did when it was recorded."""
        ...


MakeGraph: TypeAlias = Callable[[], Graph]


class NotCapturable(RuntimeError):
    """An operation that no graph can hold."""


class NoHostWork(TorchDispatchMode):
    """Refuses what a graph can't hold: reading a value back, shapes that depend on values, copies between devices.

    Args:
        where: kinds of devices whose values may not be read; those of others are constants.
    """

    def __init__(self, where: Sequence[str] = ("cuda",)) -> None:
        super().__init__()
        self._where = where

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func in WAITS and args[0].device.type in self._where:
            raise NotCapturable(f"{func} waits for the device, to read a value back")
        if func in VALUES_DECIDE or (func is aten.index.Tensor and _by_mask(args[1])):
            raise NotCapturable(f"{func} has a result whose shape depends on values")
        if func is aten.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None:
            raise NotCapturable(f"{func} has a result whose shape depends on values")
        out = func(*args, **(kwargs or {}))
        if func in COPIES:
            there, here = (leaf.device.type for leaf in (out, args[1 if func is aten.copy_.default else 0]))
            if there != here:
                raise NotCapturable(f"{func} copies from {here} to {there}")
        return out


def _by_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


class CudaGraph:
    """A CUDA graph, recorded after runs on a stream of its own.

    Args:
        device: of the tensors.
        pool: of `torch.cuda.graph_pool_handle`; graphs of one pool share memory, so they are replayed one at a time,
            and those that read each other's results in the order in which they were recorded.
    """

    def __init__(self, device: torch.device, pool: Any = None) -> None:  # noqa: ANN401 - a handle
        self._device, self._pool, self._graph = device, pool, torch.cuda.CUDAGraph()

    def capture(self, fn: Callable[[], Outputs]) -> Outputs:
        """See `Graph`."""
        here, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                fn()
            with NoHostWork():  # before the device finds out: a recording that fails says less, and may leave a mess
                fn()
        here.wait_stream(side)
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, pool=self._pool):
            outputs = fn()
        self._graph.replay()  # recording computed nothing; what is recorded next starts from these values
        return outputs

    def replay(self) -> None:
        """See `Graph`."""
        self._graph.replay()


class EagerGraph:
    """Runs the function again, into the tensors of the first time: what surrounds a graph, on any device."""

    def capture(self, fn: Callable[[], Outputs]) -> Outputs:
        """See `Graph`."""
        fn()
        with NoHostWork(("cpu", "cuda")):
            outputs = fn()
        self._fn = fn
        self._outputs = tree_map(cloned, outputs)
        return self._outputs

    def replay(self) -> None:
        """See `Graph`."""
        _copy(self._outputs, self._fn())


class CompiledGraph:
    """`torch.compile(mode="reduce-overhead")`: fused kernels, on a CUDA device in graphs that inductor records itself.

    The results of such a graph are overwritten by the next call of any: each call is a new step, and its results are
    copied at once.

    Args:
        backend: of `torch.compile`; any other than inductor has no modes.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backend = backend

    def capture(self, fn: Callable[[], Outputs]) -> Outputs:
        """See `Graph`; what can't be compiled in one piece is compiled in several."""
        mode = "reduce-overhead" if self._backend == "inductor" else None
        self._fn = torch.compile(fn, mode=mode, backend=self._backend, dynamic=False)
        for _ in range(WARM_UPS):  # compiles, then records
            self._run()
        self._outputs = tree_map(cloned, self._run())
        return self._outputs

    def replay(self) -> None:
        """See `Graph`."""
        _copy(self._outputs, self._run())

    def _run(self) -> Outputs:
        torch.compiler.cudagraph_mark_step_begin()
        return self._fn()


def cloned(leaf: Any) -> Any:  # noqa: ANN401
    """A tensor's copy; anything else as it is."""
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _copy(statics: Outputs, values: Outputs) -> None:
    for static, value in zip(tree_leaves(statics), tree_leaves(values), strict=True):
        if isinstance(static, Tensor):
            static.copy_(value)


def cuda_graphs(device: torch.device) -> MakeGraph:
    """CUDA graphs that share their memory."""
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(device, pool)
