"""Some rows of a network's call: its arguments for these alone, and its output with room for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from ..denoisers.arguments import NetworkArguments
from ..pipelines.fan import SHARED


def choose_rows(call: NetworkArguments, index: Tensor) -> None:
    """Leaves these rows, (R,), of every argument that has a row per sample, or one per frame of each."""
    listed, count = isinstance(call.state, list), len(call.state)
    frames = call.state.shape[2] if not listed and call.state.ndim == 5 else 1
    lengths = (count, count * frames)
    call.state = _chosen("", call.state, lengths, index, listed)
    if isinstance(call.time, Tensor):
        call.time = _chosen("", call.time, lengths, index, listed)
    call.change_conditioning(lambda name, value: _chosen(name, value, lengths, index, listed))


def _chosen(name: str, value: Any, lengths: tuple[int, int], index: Tensor, listed: bool) -> Any:  # noqa: ANN401
    if name in SHARED:
        return value
    if listed and isinstance(value, list):
        return [value[i] for i in index.tolist()] if len(value) == lengths[0] else value
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) not in lengths:
            return value
        return value.unflatten(0, (lengths[0], -1)).index_select(0, index.to(value.device)).flatten(0, 1)
    if isinstance(value, dict):
        return {k: _chosen(k, v, lengths, index, listed) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_chosen(name, v, lengths, index, listed) for v in value)
    return value


def spread_rows(output: Any, index: Tensor, rows: int) -> Any:  # noqa: ANN401 - any network's output
    """The same output with so many rows: those computed at their places, zeros elsewhere."""
    places = {row: i for i, row in enumerate(index.tolist())}

    def entries(values: list[Tensor]) -> list[Tensor]:
        return [values[places[row]] if row in places else torch.zeros_like(values[0]) for row in range(rows)]

    return _mapped(output, lambda t: t.new_zeros(rows, *t.shape[1:]).index_copy(0, index.to(t.device), t), entries)


def no_rows(output: Any) -> Any:  # noqa: ANN401
    """What an output looks like, without its numbers."""
    return _mapped(output, lambda t: t.new_empty(0, *t.shape[1:]), lambda entries: [torch.empty_like(entries[0])])


def blank_rows(shape: Any, rows: int) -> Any:  # noqa: ANN401
    """An output of `no_rows` with so many rows of zeros."""
    return _mapped(
        shape, lambda t: t.new_zeros(rows, *t.shape[1:]), lambda entries: [torch.zeros_like(entries[0])] * rows
    )


def _mapped(output: Any, tensor: Callable[[Tensor], Tensor], listed: Callable[[list[Tensor]], list[Tensor]]) -> Any:  # noqa: ANN401
    if isinstance(output, Tensor):
        return tensor(output)
    if isinstance(output, BaseOutput):
        return type(output)(**{name: _mapped(value, tensor, listed) for name, value in output.items()})
    if isinstance(output, list):  # one entry per row
        return listed(output)
    return tuple(_mapped(v, tensor, listed) for v in output) if isinstance(output, tuple) else output
