"""A pipeline's own `encode_prompt`, run once over all prompts and then answered from memory, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Encoder = Callable[..., Any]
CHUNK = 16  # prompts encoded at a time


class Recorder:
    """Stands in for `encode_prompt` and keeps what every call of one run returned."""

    def __init__(self, encode: Encoder) -> None:
        self._encode = encode
        self.results: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the signature is the pipeline's
        self.results.append(self._encode(*args, **kwargs))
        return self.results[-1]


class Replay:
    """Stands in for `encode_prompt` and returns recorded results, call by call, over and over."""

    def __init__(self, results: Sequence[Any]) -> None:
        self._results = results
        self._next = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self._next += 1
        return self._results[(self._next - 1) % len(self._results)]


class Encodings:
    """What `encode_prompt` returned for P prompts: every tensor with a row per prompt, kept on the CPU.

    Args:
        run: encodes the prompts with these indices in one run of the pipeline and returns what each call returned.
        count: P.
    """

    def __init__(self, run: Callable[[Sequence[int]], list[Any]], count: int) -> None:
        single = run([0])
        parts = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
        chunks = [single] if count == 1 else [_moved(run(part)) for part in parts]
        self._calls = [_join(alone, rest) for alone, *rest in zip(single, *chunks, strict=True)]
        self._latest: tuple[tuple[int, ...], list[Any]] | None = None

    def rows(self, index: Sequence[int]) -> Replay:
        """The encodings of these prompts, as `encode_prompt` would have returned them.

        Those of the latest call only are kept where the pipeline computes: the calls of a run take turns between
        anchors and fans, and between batches, and gathering rows anew takes less than anything that a network does.
        """
        conditions, latest = tuple(index), self._latest
        if latest is None or latest[0] != conditions:
            self._latest = latest = None  # gone before the next ones are there
            latest = conditions, [_gather(call, torch.tensor(conditions)) for call in self._calls]
            self._latest = latest
        return Replay(latest[1])


class _Rows:
    """A tensor with one row per prompt, and the device that the pipeline wants it on."""

    def __init__(self, parts: Sequence[Tensor], device: torch.device) -> None:
        self.device = device
        longest = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
        self.value = torch.cat([_padded(part.detach().cpu(), longest) for part in parts])


class _Entries(list[Any]):
    """One per prompt."""


def _moved(value: Any) -> Any:  # noqa: ANN401 - nested results of any pipeline
    """The tensors in main memory: a thousand prompts' encodings would fill an accelerator's."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, tuple):
        return tuple(map(_moved, value))
    if isinstance(value, list):
        return [_moved(item) for item in value]
    return value


def _padded(part: Tensor, length: int) -> Tensor:
    """Zeros up to the longest chunk: pipelines that pad to the longest prompt of a batch also return a mask."""
    if part.ndim < 2 or part.shape[1] == length:
        return part
    return torch.cat([part, part.new_zeros(len(part), length - part.shape[1], *part.shape[2:])], dim=1)


def _join(alone: Any, parts: Sequence[Any]) -> Any:  # noqa: ANN401 - nested results of any pipeline
    """One result over all prompts. What has one row for one prompt has a row per prompt; the rest is shared."""
    if isinstance(alone, Tensor):
        return _Rows(parts, alone.device) if alone.ndim and alone.shape[0] == 1 else alone
    if isinstance(alone, tuple):
        return tuple(_join(value, [part[i] for part in parts]) for i, value in enumerate(alone))
    if isinstance(alone, list) and len(alone) == 1:  # a list with one entry per prompt
        entries = [entry for part in parts for entry in part]
        return _Entries(_Rows([e[None]], alone[0].device) if isinstance(e, Tensor) else e for e in entries)
    return alone


def _gather(joined: Any, index: Tensor) -> Any:  # noqa: ANN401
    if isinstance(joined, _Rows):
        return joined.value[index].to(joined.device)
    if isinstance(joined, tuple):
        return tuple(_gather(value, index) for value in joined)
    if isinstance(joined, _Entries):
        entries = [joined[i] for i in index.tolist()]
        return [entry.value[0].to(entry.device) if isinstance(entry, _Rows) else entry for entry in entries]
    return joined
