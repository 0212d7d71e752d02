"""How many rows a network is given at once: larger calls are split, so that their memory is that of one part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .forwarding import Forwarding
from .protocol import Denoiser, Model, PassesGuidance, denoised_at, rows_per_condition
from .row_cost import RowCost, row_cost, rows_within

NUMBERS = 2**22  # in the rows of one call on a processor, whose free memory says little: others live there, too
SHARE = 0.5  # of the free memory of an accelerator: states, recorded calls and fragments need the rest
PICTURES = 2**16  # numbers of states that are decoded at once: autoencoders need far more for a pixel than networks


def samples_together(shape: Sequence[int], most: int) -> int:
    """How many samples of a shape are solved together: `most`, fewer where their states hold more than NUMBERS."""
    return max(1, min(most, NUMBERS // math.prod(shape)))


def limit_rows(model: Model, rows: int | None = None, max_memory: int | None = None) -> RowLimited:
    """The model with at most `rows` rows in a network call; results differ by rounding only.

    Args:
        model: any; one that is limited already keeps its limit unless `rows` is given.
        rows: states in one evaluation (guidance may double them inside the network); None: on CUDA what one measured
            call and the free memory allow, elsewhere as many as hold 2^22 numbers together.
        max_memory: bytes that answering one question may take beside its points: how many rows that allows is
            predicted from one measured call. Tensors are counted, on a processor not a library's own scratch memory.

    Raises:
        ValueError: for less than one row or byte; by a call, where `max_memory` does not hold a single row.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows = {rows}: a network call has at least 1 row; leave it out to have it measured")
    if max_memory is not None and max_memory < 1:
        raise ValueError(f"max_memory = {max_memory} must be at least 1 byte; leave it out for no such limit")
    if isinstance(model, RowLimited):
        kept = model.max_memory if max_memory is None else max_memory
        unchanged = rows is None and max_memory is None
        return model if unchanged else RowLimited(model.model, model.fixed if rows is None else rows, kept)
    return RowLimited(model, rows, max_memory)


@dataclass(frozen=True, eq=False)
class RowLimited(Forwarding, PassesGuidance):
    """A model whose network calls are split; made by `limit_rows`.

    Args:
        model: what evaluates the parts.
        fixed: the most rows of a call; None: found out when it is first needed.
        max_memory: bytes, see `limit_rows`.
    """

    model: Model
    fixed: int | None = None
    max_memory: int | None = None
    _automatic: dict[bool, int] = field(default_factory=dict, init=False, repr=False)  # by whether gradients are kept
    _costs: dict[bool, RowCost] = field(default_factory=dict, init=False, repr=False)  # the same

    def rows(self, gradients: bool = False) -> int:
        """The most rows of one network call, with or without the activations that a gradient needs."""
        if self.fixed is not None:
            return self.fixed
        if gradients not in self._automatic:
            self._automatic[gradients] = automatic_rows(self.model, gradients)
        return self._automatic[gradients]

    def limit(self, x: Tensor) -> int:
        """The most rows of a part of this call (R, *S).

        Raises:
            ValueError: where `max_memory` does not hold a single row.
        """
        gradients = torch.is_grad_enabled()
        if self.max_memory is None:
            return self.rows(gradients)
        if gradients not in self._costs:
            self._costs[gradients] = row_cost(self.model, gradients)
        fits = rows_within(self.max_memory, self._costs[gradients], x)
        return fits if self.fixed is None else min(fits, self.fixed)

    def for_seeds(self, seeds: Sequence[int]) -> Denoiser:
        """The denoiser for the samples with these seeds; each part of a call is bound to its own samples."""
        return self.split(seeds, self.model.for_seeds)

    def split(self, seeds: Sequence[int], bind: Callable[[Sequence[int]], Denoiser]) -> Denoiser:
        """Like `for_seeds`, the parts being bound by `bind`: what wraps a network call wraps each part alone."""
        return Split(tuple(seeds), bind, self.limit)

    def decode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] of finished states, a few at a time."""
        size = max(1, PICTURES // math.prod(self.shape))
        size = size if self.fixed is None else min(size, self.fixed)
        return torch.cat([self.model.decode(part) for part in x.split(size)])

    def _denoised(self, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
        limit = self.limit(x)
        if len(x) <= limit:
            return denoised_at(self.model, x, sigma, factor)
        runs = (slice(first, first + limit) for first in range(0, len(x), limit))
        return torch.cat([_part(self.model, rows, x, sigma, factor) for rows in runs])


@dataclass(frozen=True, eq=False)
class Split(PassesGuidance):
    """A denoiser of B samples that evaluates a call of B x K rows in parts.

    Args:
        seeds: of the samples.
        bind: seeds of a part -> its denoiser.
        most: a call -> the most rows of a part.
    """

    seeds: tuple[int, ...]
    bind: Callable[[Sequence[int]], Denoiser]
    most: Callable[[Tensor], int]
    _bound: dict[tuple[int, int], Denoiser] = field(default_factory=dict, init=False, repr=False)  # by their samples

    def _denoised(self, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
        limit = self.most(x)
        if len(x) <= limit:
            return denoised_at(self._of(0, len(self.seeds)), x, sigma, factor)
        parts = _parts(len(self.seeds), rows_per_condition(len(x), len(self.seeds)), limit)
        return torch.cat([_part(self._of(*samples), rows, x, sigma, factor) for samples, rows in parts])

    def _of(self, first: int, last: int) -> Denoiser:
        if (first, last) not in self._bound:
            self._bound[first, last] = self.bind(self.seeds[first:last])
        return self._bound[first, last]


def _part(denoiser: Denoiser, rows: slice, x: Tensor, sigma: Tensor, factor: Tensor | None) -> Tensor:
    """Some rows of a call."""
    return denoised_at(denoiser, x[rows], _rows_of(sigma, rows), None if factor is None else _rows_of(factor, rows))


def _rows_of(values: Tensor, rows: slice) -> Tensor:
    return values if values.ndim == 0 else values[rows]


def _parts(samples: int, points: int, limit: int) -> Iterator[tuple[tuple[int, int], slice]]:
    """(first and last sample, rows) of each part: whole samples, or pieces of one whose points alone are too many."""
    whole = max(1, limit // points)
    for first in range(0, samples, whole):
        last = min(first + whole, samples)
        for row in range(first * points, last * points, limit):
            yield (first, last), slice(row, min(row + limit, last * points))


def automatic_rows(model: Model, gradients: bool) -> int:
    """The most rows of a call that leave memory for the rest."""
    if torch.device(model.device).type == "cuda":
        return rows_that_fit(row_cost(model, gradients).call, _free_bytes(model.device))
    return max(1, NUMBERS // math.prod(model.shape))


def rows_that_fit(bytes_of_a_row: int, free: int) -> int:
    """The largest power of two whose rows fit SHARE of the free bytes, at least 1: a little more or less free memory
    seldom changes it, and with it the rounding of results.
    """
    return 2 ** int(math.log2(max(1.0, SHARE * free / max(bytes_of_a_row, 1))))


def _free_bytes(device: str) -> int:
    """What the device has left, with what the allocator holds without using it."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
