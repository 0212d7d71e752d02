"""A UNet without its deep blocks: what the last of them gave in an earlier step is given again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from .block_lists import plain
from .moment import Moment, Work
from .site import Site
from .skipping import require_no_cache


@dataclass(frozen=True)
class Cut:
    """Where a network is cut.

    Args:
        left_out: modules that are not run.
        kept: the one of them whose output is kept; that of the others is not used.
    """

    left_out: tuple[Module, ...]
    kept: Module


def cut_of(network: Module, reuse: str) -> Cut:
    """What `last_temporal` or `deep` leaves out.

    Raises:
        ValueError: for a network that has no such point.
    """
    network = plain(network)
    parts, kind = dict(network.named_children()), type(network).__name__
    if not {"down_blocks", "mid_block", "up_blocks"} <= set(parts):
        raise ValueError(
            f"reuse = {reuse!r} needs a UNet, whose last block sees the state beside what is kept, and {kind} is none: "
            "give 'output', or epd.FirstBlock"
        )
    down, up = list(parts["down_blocks"].children()), list(parts["up_blocks"].children())
    middle = [parts["mid_block"]]
    if reuse == "deep":
        if len(up) < 2:
            raise ValueError(f"{kind} has one level, and nothing is deep in it: give 'output'")
        return Cut((*down[1:], *middle, *up[:-1]), up[-2])
    inner = dict(up[-1].named_children())
    resnets = list(inner["resnets"].children())
    last = dict(resnets[-1].named_children())
    if "temporal_res_block" not in last or "attentions" not in inner:
        raise ValueError(f"behind the last temporal layer of {kind} no time enters: give 'output', which is the same")
    attentions = list(inner["attentions"].children())
    kept = last["spatial_res_block"]
    return Cut((*down, *middle, *up[:-1], *resnets[:-1], *attentions[:-1], kept), kept)


class Deep:
    """See `Live`. What is kept is kept for every place of the step alone.

    Args:
        reuse: the point.
        full: whether a call is computed as it is.
    """

    def __init__(self, site: Site, reuse: str, full: Callable[[Moment], bool]) -> None:
        require_no_cache(site.only)
        self._site, self._full, self._cut = site, full, cut_of(site.only, reuse)
        self._kept: dict[Any, Tensor] = {}
        self._outside: dict[Any, Any] = {}  # of modules whose output is not used: its shapes
        self._skip = False
        self._place: Any = None
        weights = sum(p.numel() for part in self._cut.left_out for p in part.parameters())
        self._left = 1 - weights / sum(p.numel() for p in site.only.parameters())
        for module in self._cut.left_out:
            site.cover(module, functools.partial(self._module, module))

    def begin(self) -> None:
        self._kept.clear()
        self._outside.clear()

    def before(self, now: Moment) -> Work | None:
        self._skip, self._place = False, None  # decided when the rows are known
        return None

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        return slopes

    def stored(self) -> int:
        return sum(tensor.nbytes for tensor in self._kept.values())

    def _module(self, module: Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        now = self._site.now
        if now is None:
            return original(*args, **kwargs)
        if self._place is None:
            rows = self._site.work.rows
            chosen = None if rows is None else tuple(int(row) for row in rows)
            state = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))
            self._place = (now.state, now.slots, now.branch, chosen, tuple(state.shape))
            self._skip = self._place in self._kept and not self._full(now)
            self._site.record(blocks=self._left if self._skip else 1.0)
        if self._skip:
            return self._kept[self._place] if module is self._cut.kept else self._outside[self._place, module]
        output = original(*args, **kwargs)
        if module is self._cut.kept:
            self._kept[self._place] = output
        else:
            self._outside[self._place, module] = _shapes(output)
        return output


def _shapes(output: Any) -> Any:  # noqa: ANN401
    """One element for every tensor, spread out to its shape: no memory."""
    if isinstance(output, Tensor):
        return output.new_zeros(()).expand(output.shape)
    return tuple(map(_shapes, output)) if isinstance(output, (list, tuple)) else output
