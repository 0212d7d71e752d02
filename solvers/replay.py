"""A function of tensors that is replayed from graphs, recorded once for each shape of its arguments."""

from __future__ import annotations

import logging
import sysconfig
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .graphs import Graph, MakeGraph, Outputs, cloned, cuda_graphs

log = logging.getLogger("epd")
# Records one run on these arguments: the outputs, which stay where they are.
Program: TypeAlias = Callable[[MakeGraph, Sequence[Any]], Outputs]


@dataclass(frozen=True)
class _Recording:
    graphs: Sequence[Graph]
    inputs: Sequence[Any]
    outputs: Outputs


class Replays:
    """`eager`, replayed from graphs where that can be.

    Arguments are copied into a recording's own tensors and results out of them, so neither is shared between calls.
    What can't be recorded runs as it is, and one message says which call prevented it.

    Args:
        name: of the function, for that message.
        eager: the function; its arguments hold tensors at any depth, all else must be hashable.
        program: records what `eager` does; none: as one graph.
        make_graph: none: CUDA graphs that share one pool of memory.
        most: recordings that are kept, those that were used last.
    """

    def __init__(
        self,
        name: str,
        eager: Callable[..., Outputs],
        program: Program | None = None,
        make_graph: MakeGraph | None = None,
        most: int = 4,
    ) -> None:
        if most < 1:
            raise ValueError(f"most = {most}: at least 1 recording is kept")
        self.name, self.eager, self.most = name, eager, most
        self._program = program or (lambda make, arguments: make().capture(lambda: eager(*arguments)))
        self._make_graph = make_graph
        self._kept: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._refused: set[Hashable] = set()
        self._said: set[str] = set()
        self._lock = threading.RLock()  # buffers are those of one call at a time

    def __call__(self, *arguments: Any, state: Hashable = None) -> Outputs:  # noqa: ANN401
        """What `eager` returns for these arguments; a recording is of one `state`, whatever that says."""
        with self._lock:
            leaves, spec = tree_flatten(arguments)
            device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), torch.device("cpu"))
            reason = self._never(device)
            key = (*map(_signature, leaves), repr(spec), *_modes(device), state)
            if reason or not _hashable(key) or key in self._refused:
                self.say(reason or ("" if _hashable(key) else "an argument is neither a tensor nor hashable"))
                return self.eager(*arguments)
            recording = self._kept.get(key) or self._recorded(key, leaves, spec, device)
            if recording is None:
                return self.eager(*arguments)
            self._kept.move_to_end(key)
            for static, leaf in zip(recording.inputs, leaves, strict=True):
                if isinstance(leaf, Tensor):
                    static.copy_(leaf, non_blocking=True)
            for graph in recording.graphs:
                graph.replay()
            return tree_map(cloned, recording.outputs)

    @property
    def kept(self) -> int:
        """How many recordings there are."""
        return len(self._kept)

    def _never(self, device: torch.device) -> str:
        if torch.is_grad_enabled():
            return "gradients are enabled, and a graph has none: call it in torch.no_grad() or torch.inference_mode()"
        if self._make_graph is None and device.type != "cuda":
            return f"the tensors lie on {device.type}, and graphs are those of a CUDA device"
        return ""

    def _recorded(self, key: Hashable, leaves: Sequence[Any], spec: Any, device: torch.device) -> _Recording | None:  # noqa: ANN401
        while len(self._kept) >= self.most:  # before, so that their memory is free
            self._kept.popitem(last=False)
        if self._make_graph is None:
            self._make_graph = cuda_graphs(device)
        graphs: list[Graph] = []

        def make() -> Graph:
            assert self._make_graph is not None
            graphs.append(self._make_graph())
            return graphs[-1]

        inputs = [*map(cloned, leaves)]
        try:
            outputs = self._program(make, tree_unflatten(inputs, spec))
        except RuntimeError as error:
            self._refused.add(key)
            self.say(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}{_place_of(error)}")
            return None
        self._kept[key] = _Recording(graphs, inputs, outputs)
        return self._kept[key]

    def say(self, reason: str) -> None:
        """Tells once why there is no replay; an empty reason is none."""
        if reason and reason not in self._said:
            self._said.add(reason)
            log.warning("%s is not replayed from graphs: %s", self.name, reason)


def _signature(leaf: Any) -> Hashable:  # noqa: ANN401
    """What a recording depends on: all of an argument but a tensor's values."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), leaf


def _hashable(key: Hashable) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _modes(device: torch.device) -> tuple[Hashable, ...]:
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return torch.is_inference_mode_enabled(), autocast


def _place_of(error: BaseException) -> str:
    """The last line outside of libraries that an error came through."""
    libraries, here = sysconfig.get_paths()["purelib"], {"replay.py", "graphs.py"}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(libraries) and Path(frame.filename).name not in here
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
