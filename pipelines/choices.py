"""The points of a fan in one network call, or in one each: whichever was faster when the first of a shape was measured.

A run's calls are laid out before it begins and before any shape is known, so a wide call stays one of the pipeline's
loop. Whether the network sees its rows together or point by point is decided beneath it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map

from ..denoisers.arguments import NetworkArguments
from ..denoisers.hooks import Finish
from ..denoisers.protocol import capturing
from ..solvers.auto import Seconds, fastest, seconds_of

Key: TypeAlias = tuple[int, torch.Size, torch.dtype, torch.device]


@dataclass(eq=False)
class Choices:
    """Of one enabled pipeline.

    Args:
        seconds: measures one evaluation of a fan.
        made: `batched` or `serial`, by the number of points, and shape, dtype and device of the pipeline's rows.
        inside: the network's call that is under way is one of these, and not the pipeline's.
    """

    seconds: Seconds = seconds_of
    made: dict[Key, str] = field(default_factory=dict)
    inside: bool = False

    def apply(self, module: Module, call: NetworkArguments, plain: NetworkArguments, width: int) -> Finish | None:
        """Where that is faster, makes a fan's call the one for its last point, and those for the others before.

        Returns what makes all rows' output of the last point's, then.

        Args:
            call: for all rows, R x K, sample-major.
            plain: as the pipeline made it, with conditioning for R rows.
            width: K.
        """
        rows: Tensor | list[Tensor] = call.state
        count, first = len(rows) // width, rows[0]
        key = (width, torch.Size((count, *first.shape)), first.dtype, first.device)
        each = [_of_point(plain, call, k, width) for k in range(width)]
        if key not in self.made and not capturing(first):
            works = {"batched": [call], "serial": each}
            named = {name: functools.partial(self._made, module, calls) for name, calls in works.items()}
            self.made[key] = fastest(named, first.device, self.seconds)
        if self.made.get(key) != "serial":
            return None
        others = self._made(module, each[:-1])
        call.take(each[-1])
        return lambda output: joined([*others, output], count, isinstance(rows, list))

    def _made(self, module: Module, calls: Sequence[NetworkArguments]) -> list[Any]:
        """What the network says to these calls."""
        self.inside = True
        try:
            # In containers of its own: UNets take the residuals of T2I adapters out of the list that they are given.
            pairs = (tree_map(lambda leaf: leaf, call.pair()) for call in calls)
            return [module(*args, **kwargs) for args, kwargs in pairs]
        finally:
            self.inside = False

    def lines(self) -> tuple[str, ...]:
        """What was found, for people."""
        made = self.made.items()
        return tuple(f"{k} points of {tuple(shape)}, {dtype}: {name}" for (k, shape, dtype, _), name in made)


def _of_point(plain: NetworkArguments, call: NetworkArguments, k: int, width: int) -> NetworkArguments:
    """The call for one point of a fan."""
    single, rows = plain.copy(), call.state[k::width]
    single.state = rows.contiguous() if isinstance(rows, Tensor) else rows
    single.time = call.time[k::width].contiguous()
    return single


def joined(outputs: Sequence[Any], count: int, listed: bool) -> Any:  # noqa: ANN401 - any network's output
    """What a network says of R x K rows, sample-major, of what it says of R rows of each of K points.

    Args:
        count: R.
        listed: the state is a list with one tensor per row, and so is what is said of it.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        if not first.ndim:
            return first
        return torch.stack([output.unflatten(0, (count, -1)) for output in outputs], 1).flatten(0, 2)
    if isinstance(first, list) and listed:
        return [row for rows in zip(*outputs, strict=True) for row in rows]
    if isinstance(first, Mapping):  # diffusers' outputs are mappings, too
        return type(first)(**{name: joined([output[name] for output in outputs], count, listed) for name in first})
    if isinstance(first, (list, tuple)):
        return type(first)(joined(parts, count, listed) for parts in zip(*outputs, strict=True))
    return first
