"""A network's output at the points of a fan: rows that a pipeline may combine with each other, not with its state's.

A pipeline holds one row per sample. Where it has more than one sample, torch refuses to combine those with the K rows
per sample of a fan; with a single sample it would broadcast, and the result would be wrong without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor


class FanRows(Tensor):
    """(B x K, *S) for B samples; what is computed from it is of this kind, too.

    Raises:
        ValueError: for an operation with a tensor of the same rows' shape that would be broadcast over them.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation returns
        with torch._C.DisableTorchFunctionSubclass():
            tensors = [*_tensors((*args, *(kwargs or {}).values()))]
            fans, others = ([t for t in tensors if isinstance(t, cls) is kind] for kind in (True, False))
            for fan, other in ((fan, other) for fan in fans for other in others):
                if other.ndim and other.shape[1:] == fan.shape[1:] and len(other) != len(fan) and len(other) == 1:
                    raise ValueError(
                        f"the pipeline combines what its network says of {len(fan)} rows with a tensor of one, "
                        f"{tuple(other.shape)}: use epd.enable(pipe, table, parallel=False)"
                    )
        return super().__torch_function__(func, types, args, dict(kwargs or {}))  # type: ignore[arg-type]


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def marked(output: Any) -> Any:  # noqa: ANN401 - any network's output
    """The same output, its tensors as `FanRows`."""
    if isinstance(output, Tensor):
        return output.as_subclass(FanRows)
    if isinstance(output, BaseOutput):
        return type(output)(**{name: marked(value) for name, value in output.items()})
    return tuple(map(marked, output)) if isinstance(output, tuple) else output


def unmarked(output: Tensor) -> Tensor:
    """The same values as an ordinary tensor."""
    return output.as_subclass(Tensor)
