"""Attention that leaves out blocks of keys: which ones, and the attention over those that are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.overrides import TorchFunctionMode

ALIKE = 0.5  # mean cosine between a block's tokens and their mean, below which that mean says too little of them
FLEX = 128  # block sides that flex_attention takes are multiples of this
_compiled: list[Callable[..., Any]] = []  # compiled when first needed


def kept_blocks(query: Tensor, key: Tensor, mass: Tensor, block: int, text: int = 0) -> Tensor:
    """Which blocks of keys each block of queries attends to, (R, H, Q, K) bool.

    The fewest whose share of softmax(mean query . mean key / sqrt(D)) reaches the mass; the diagonal, the blocks with
    text at the end, and whatever has a block of tokens that are unlike each other in it, are always kept.

    Args:
        query, key: (R, H, T, D), of the same tokens.
        mass: (R,) in (0, 1]; at 1 all blocks are kept.
        block: tokens in a block, the last one may have fewer.
        text: tokens at the end that are no picture's.

    Reference: arXiv 2502.18137 (pooled scores, cumulated mass, similarity), arXiv 2509.22323.
    """
    (queries, alike_q), (keys, alike_k) = _pooled(query, block), _pooled(key, block)
    share = (queries @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    ordered, order = share.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # share of those that weigh more
    enough = before < mass.to(share)[:, None, None, None]
    kept = torch.zeros_like(enough).scatter(-1, order, enough)
    count = kept.shape[-1]
    always = torch.eye(count, dtype=torch.bool, device=kept.device)
    first = (query.shape[2] - text) // block if text else count
    always[first:], always[:, first:] = True, True
    whole = (mass >= 1).to(kept.device)[:, None, None, None]
    return kept | always | ~alike_q[..., :, None] | ~alike_k[..., None, :] | whole


def _pooled(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Means of blocks (R, H, N, D), and which blocks' tokens are alike (R, H, N); float32."""
    x = x.float()
    last = -x.shape[2] % block
    parts = F.pad(x, (0, 0, 0, last)).unflatten(2, (-1, block))
    counts = torch.full((parts.shape[2], 1), float(block), device=x.device)
    counts[-1] -= last
    mean = parts.sum(3) / counts
    cosine = (F.normalize(parts, dim=-1) * F.normalize(mean, dim=-1)[..., None, :]).sum(-1).sum(-1) / counts[:, 0]
    return mean, cosine >= ALIKE


def attention_over(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, block: int, scale: float | None) -> Tensor:
    """Attention (R, H, T, D) over the kept blocks: by flex_attention on CUDA where blocks allow it, which leaves out
    the others' products; else by a mask, which has the same result at the whole cost.
    """
    if query.is_cuda and block % FLEX == 0 and query.shape[2] % block == 0:
        if not _compiled:
            _compiled.append(torch.compile(flex_attention))
        return _compiled[0](query, key, value, block_mask=flex_mask(kept, block), scale=scale)
    tokens = torch.arange(query.shape[2], device=query.device) // block
    return F.scaled_dot_product_attention(query, key, value, kept[..., tokens, :][..., tokens], scale=scale)


def flex_mask(kept: Tensor, block: int) -> BlockMask:
    """The kept blocks (R, H, Q, K) as flex_attention takes them, all of them whole: nothing in them is masked."""
    order = kept.int().sort(dim=-1, descending=True, stable=True).indices.int()
    count = kept.sum(-1, dtype=torch.int32)

    def inside(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return kept[b, h, q // block, k // block]

    return BlockMask.from_kv_blocks(torch.zeros_like(count), order, count, order, block, mask_mod=inside)


class SparseAttention(TorchFunctionMode):
    """Within it, self-attention of some rows is that over fewer blocks; rows whose mass is 1 keep their bits.

    Args:
        mass: (R,) of each row of the call.
        block: tokens in a block.
        text: tokens at the end that are no picture's.
        told: is given the share (R,) of blocks that each row keeps, at every attention.
    """

    def __init__(self, mass: Tensor, block: int, text: int, told: Callable[[Tensor], object] | None = None) -> None:
        super().__init__()
        self._mass, self._block, self._text, self._told = mass, block, text, told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key, value = call["query"], call["key"], call["value"]
        masked = call.get("attn_mask") is not None or call.get("is_causal")
        if masked or query.shape != key.shape or len(query) != len(self._mass):
            return func(*args, **kwargs)
        rows = (self._mass < 1).nonzero().flatten().to(query.device)
        q, k, v = (part[rows] for part in (query, key, value))
        kept = kept_blocks(q, k, self._mass[rows.to(self._mass.device)].to(query.device), self._block, self._text)
        if self._told is not None:
            share = torch.ones(len(query), device=query.device)
            self._told(share.index_copy(0, rows, kept.float().mean((1, 2, 3))))
        sparse = attention_over(q, k, v, kept, self._block, call.get("scale"))
        if len(rows) == len(query):
            return sparse
        others = (self._mass >= 1).nonzero().flatten().to(query.device)
        dense = func(query[others], key[others], value[others], **_beside(call))
        out = dense.new_empty(len(query), *dense.shape[1:])
        return out.index_copy(0, others, dense).index_copy(0, rows, sparse.to(dense.dtype))


def _beside(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name not in ("query", "key", "value")}
