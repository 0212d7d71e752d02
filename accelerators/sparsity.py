"""Sparse levels in the attentions of a network, row by row, and what they cost there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .block_lists import TEXT, plain
from .measure import FORMULAS, counting
from .places import parts_of, places_of
from .site import Site
from .sparse_attention import SparseAttention

WORKS = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel")  # text, if any, stands last


class Levels:
    """See `deciding.Sparsity`: at level l > 0 the picture's self-attentions keep the blocks of a share of the mass.

    Args:
        site: of the network.
        masses: of levels 1, 2, ..., see `kept_blocks`.
        block: tokens in a block.

    Raises:
        ValueError: for a network of another class.
    """

    def __init__(self, site: Site, masses: tuple[float, ...], block: int) -> None:
        self._site, self._block = site, block
        self._masses = torch.tensor([1.0, *masses])
        self._levels: Tensor | None = None
        self.told: Callable[[Tensor], object] | None = None  # what is kept, for those who measure
        for _, attention in attentions_of(site.only):
            site.cover(attention, self._attend)

    def use(self, levels: Tensor | None) -> None:
        """See `deciding.Sparsity`."""
        self._levels = None if levels is None or not bool(levels.any()) else levels

    def _attend(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        now = self._site.now
        if now is None or self._levels is None:
            return original(*args, **kwargs)
        levels, rows = self._levels, self._site.work.rows
        if rows is not None:  # the network is given these alone
            offsets = torch.arange(now.copies) * (len(levels) // now.copies)
            levels = levels[(offsets[:, None] + torch.as_tensor(rows, dtype=torch.long)).flatten()]
        if not bool(levels.any()):
            return original(*args, **kwargs)
        text = kwargs.get(TEXT)
        beside = 0 if text is None else text.shape[1]
        with SparseAttention(self._masses[levels], self._block, beside, self.told):
            return original(*args, **kwargs)


def attentions_of(network: Module) -> list[tuple[str, Module]]:
    """The self-attentions of the picture's tokens.

    Raises:
        ValueError: for a network of another class.
    """
    network = plain(network)
    if not any(kind.__name__ in WORKS for kind in type(network).__mro__):
        raise ValueError(f"sparse attention does not know {type(network).__name__}: it works in {', '.join(WORKS)}")
    places = places_of(network, "sparse attention")
    return parts_of(network, places, places.attention)


def attention_share(call: Callable[[], object]) -> float:
    """The share of attention's products in a network's call, in floating point operations."""
    with counting() as counter:
        call()
    counts = counter.get_flop_counts()["Global"]
    own = sum(count for op, count in counts.items() if "scaled_dot_product" in str(op))
    assert FORMULAS, "the processor's attention is counted"
    return own / max(1, sum(counts.values()))
