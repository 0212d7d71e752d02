"""Blocks left out: what they added in an earlier step is added again, row by row, while something changes little."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from ..pipelines.placement import caches
from .block_lists import HIDDEN, Blocks, rows_of
from .moment import Moment, Work
from .site import Site


@dataclass
class Kept:
    """Of the calls at one place of the step; (R, ...) for its rows.

    Args:
        seen: what the next call is compared with.
        residual: what the blocks added when they were last computed.
        level: log sigma then, of each row.
        before: residual and level of the time before that.
        change: since then.
        size: sum |seen|, once it was asked for.
    """

    seen: Tensor
    residual: Tensor
    level: list[float]
    before: tuple[Tensor, list[float]] | None
    change: list[float]
    size: Tensor | None = None

    def stored(self) -> int:
        """Bytes."""
        kept = (self.seen, self.residual, *(self.before or ())[:1])
        return sum(tensor.nbytes for tensor in kept)


@dataclass
class Running:
    """A network call whose blocks are being run.

    Args:
        base: (R, T, C) what the blocks that may be left out add to.
        index: rows that go through them, here and on the device; None: all.
    """

    key: tuple[Any, ...]
    base: Tensor
    level: list[float]
    kept: Kept | None
    seen: Tensor
    change: list[float]
    index: tuple[list[int], Tensor] | None


class Skips(Protocol):
    """What differs between the members."""

    @property
    def threshold(self) -> float: ...
    @property
    def order(self) -> int: ...
    @property
    def each(self) -> str: ...


class Skipping:
    """See `Live`. State is kept for every place of the step (question, points, branch, rows) alone.

    Args:
        settings: threshold, order, each.
        probing: block 0 is always computed, and what it adds is compared with the last time that all were; else the
            modulated input is compared with that of the call before and the changes are added up.
        rescale: relative change -> what is added up.
    """

    def __init__(self, settings: Skips, site: Site, probing: bool, rescale: Callable[[float], float]) -> None:
        self._settings, self._site, self._probing, self._rescale = settings, site, probing, rescale
        network = site.only
        require_no_cache(network)
        self._blocks = Blocks(network)
        if len(self._blocks) < 1 + probing:
            raise ValueError(f"a network of {len(self._blocks)} blocks has none to leave out: accelerate a deeper one")
        self._kept: dict[tuple[Any, ...], Kept] = {}
        self._running: Running | None = None
        for place, block in enumerate(self._blocks.modules):
            site.cover(block, functools.partial(self._block, place))
        if not probing:
            self._blocks.remember(site)

    def begin(self) -> None:
        self._kept.clear()
        self._running = None

    def before(self, now: Moment) -> Work | None:
        self._running = None
        return None

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        return slopes

    def stored(self) -> int:
        return sum(kept.stored() for kept in self._kept.values())

    def _block(self, place: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        now = self._site.now
        if now is None:
            return original(*args, **kwargs)
        if place == 0:
            call = self._blocks.arguments(place, args, kwargs)
            if self._probing:
                output = original(*args, **kwargs)
                image = self._blocks.image(output)
                self._running = self._decided(now, image - call[HIDDEN], image)
                return output
            self._running = self._decided(now, self._blocks.modulated(call), call[HIDDEN])
        running = self._running
        if running is None:  # a network that leaves its own first block out
            return original(*args, **kwargs)
        last = place == len(self._blocks) - 1
        if last:
            self._running = None
        if running.index is None:
            output = original(*args, **kwargs)
            if last:
                self._finish(running, self._blocks.image(output) - running.base)
            return output
        call = self._blocks.arguments(place, args, kwargs)
        computed, index = running.index
        if not computed:
            return self._blocks.passed(call, self._again(running) if last else None)
        some = rows_of(call, index, len(running.base))
        output = original(**some)
        if not last:
            return self._blocks.spread(call, output, index)
        image = self._blocks.image(output)
        added = image - running.base.index_select(0, index)
        whole = self._again(running).index_copy(0, index, image)
        self._finish(running, added)
        return self._blocks.passed(call, whole)

    def _decided(self, now: Moment, seen: Tensor, base: Tensor) -> Running:
        rows, site = len(seen), self._site
        chosen = None if site.work.rows is None else tuple(int(row) for row in site.work.rows)
        key = (now.state, now.slots, now.branch, chosen)
        kept, per_copy = self._kept.get(key), rows // now.copies
        points = [row % now.points for row in (range(per_copy) if chosen is None else chosen)] * now.copies
        levels = [math.log(now.sigma[k]) for k in points]
        if kept is not None and (kept.seen.shape != seen.shape or kept.residual.shape != base.shape):
            kept = None
        if now.first or now.last or kept is None:
            site.record(blocks=1.0)
            return Running(key, base, levels, kept, seen, [0.0] * rows, None)
        change = self._changes(kept, seen, now.copies)
        if not self._probing:
            change = [had + new for had, new in zip(kept.change, change, strict=True)]
        computed = [row for row, value in enumerate(change) if not value < self._settings.threshold]
        least = 1 / len(self._blocks) if self._probing else 0.0
        site.record(blocks=least + (1 - least) * len(computed) / rows)
        index = None
        if len(computed) < rows:
            index = computed, torch.tensor(computed, dtype=torch.long, device=seen.device)
        done = set(computed)
        change = [0.0 if row in done else value for row, value in enumerate(change)]
        if not self._probing:  # the blocks may be left out from here on, and this is what comes before the next call
            kept.seen, kept.change, kept.size = seen, change, None
        return Running(key, base, levels, kept, seen, change, index)

    def _changes(self, kept: Kept, seen: Tensor, copies: int) -> list[float]:
        """Of every row: sum |new - old| / sum |old|, over guidance's copies, or over all rows."""
        new = _sizes(seen.detach() - kept.seen.detach())
        if kept.size is None:
            kept.size = _sizes(kept.seen.detach())
        old = kept.size
        if self._settings.each == "sample":
            ratio = (new.view(copies, -1).sum(0) / old.view(copies, -1).sum(0)).repeat(copies)
        else:
            ratio = (new.sum() / old.sum()).expand(len(seen))
        return [self._rescale(value) for value in ratio.tolist()]  # waits for the device, once a call

    def _again(self, running: Running) -> Tensor:
        """(R, T, C) with what the blocks added before, or what it would be by now."""
        kept = running.kept
        assert kept is not None, "blocks are left out where something is kept"
        if self._settings.order == 0 or kept.before is None:
            return running.base + kept.residual
        residual, before = kept.before
        levels = zip(running.level, kept.level, before, strict=True)
        ahead = [0.0 if last == first else (now - last) / (last - first) for now, last, first in levels]
        # A number where all rows agree, as they do without a fan: nothing is sent to the device.
        same = len(set(ahead)) == 1
        weight = 1 + ahead[0] if same else 1 + _like(residual.new_tensor(ahead), residual)
        return running.base + torch.lerp(residual, kept.residual, weight)

    def _finish(self, running: Running, added: Tensor) -> None:
        """Keeps what the blocks added to the rows that went through them."""
        kept, extrapolated = running.kept, self._settings.order > 0
        if kept is None or running.index is None:
            before = None if kept is None or not extrapolated else (kept.residual, kept.level)
            self._kept[running.key] = Kept(running.seen, added, running.level, before, running.change)
            return
        rows, index = running.index
        computed = set(rows)
        where = torch.zeros(len(running.base), dtype=torch.bool, device=added.device)
        mask = _like(where.index_fill(0, index, True), kept.residual)
        if extrapolated:
            residual, level = kept.before or (kept.residual, kept.level)
            kept.before = torch.where(mask, kept.residual, residual), _chosen(computed, kept.level, level)
        kept.residual = kept.residual.index_copy(0, index, added)
        kept.level = _chosen(computed, running.level, kept.level)
        if self._probing:
            kept.seen, kept.size = torch.where(mask, running.seen, kept.seen), None


def require_no_cache(network: Module) -> None:
    """Raises a ValueError where a cache of diffusers is at work in a network already."""
    if caches(network):
        raise ValueError(
            f"a cache of diffusers is on in {type(network).__name__}: network.disable_cache() first, and give it as "
            "epd.Native(config)"
        )


def require_settings(threshold: float, order: int, each: str) -> None:
    """Raises a ValueError for settings that mean nothing."""
    if not threshold >= 0 or math.isinf(threshold):
        raise ValueError(f"threshold = {threshold} must be a finite change from 0, where nothing is left out")
    if order not in (0, 1):
        raise ValueError(f"order = {order} must be 0, what was added last, or 1, extrapolated")
    if each not in ("sample", "call"):
        raise ValueError(f"each = {each!r} is unknown: give 'sample' or 'call'")


def unplanned(calls: Sequence[Moment], threshold: float) -> list[Work] | None:
    """What is known beforehand: all, where nothing is left out."""
    return [Work()] * len(calls) if threshold == 0 else None


def _sizes(values: Tensor) -> Tensor:
    """(R,) sums of absolute values; `vector_norm` of order 1 takes several times as long on a processor."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.abs().sum(tuple(range(1, values.ndim)), dtype=dtype)


def _chosen(rows: set[int], values: list[float], others: list[float]) -> list[float]:
    """These values in these rows, and the others elsewhere."""
    return [v if row in rows else other for row, (v, other) in enumerate(zip(values, others, strict=True))]


def _like(values: Tensor, tensor: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (tensor.ndim - 1))
