"""Where the blocks of a transformer are, what they return, and what its first attention sees: data, by model class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..pipelines.fan import SHARED
from .site import Site

HIDDEN, TEXT = "hidden_states", "encoder_hidden_states"
Values = Mapping[str, Any]  # the arguments of a block, by name


def _zero(block: Any, call: Values) -> Tensor:  # noqa: ANN401
    return block.norm1(call[HIDDEN], emb=call["temb"])[0]


def _dit(block: Any, call: Values) -> Tensor:  # noqa: ANN401
    hidden = call[HIDDEN]
    return block.norm1(hidden, call["timestep"], call["class_labels"], hidden_dtype=hidden.dtype)[0]


def _pixart(block: Any, call: Values) -> Tensor:  # noqa: ANN401
    hidden = call[HIDDEN]
    shift, scale, *_ = (block.scale_shift_table[None] + call["timestep"].reshape(len(hidden), 6, -1)).chunk(6, dim=1)
    return block.norm1(hidden) * (1 + scale) + shift


def _lumina(block: Any, call: Values) -> Tensor:  # noqa: ANN401
    return block.norm1(call[HIDDEN], call["temb"])[0]


def _wan(block: Any, call: Values) -> Tensor:  # noqa: ANN401
    hidden, temb = call[HIDDEN], call["temb"].float()
    shift, scale, *_ = (block.scale_shift_table + temb).unbind(dim=-2)
    shift, scale = (v if v.ndim == hidden.ndim else v[:, None] for v in (shift, scale))
    return (block.norm1(hidden.float()) * (1 + scale) + shift).type_as(hidden)


@dataclass(frozen=True)
class Lists:
    """Of a model class.

    Args:
        names: of its lists of blocks, in the order in which they are run.
        image: place of the image's tokens in what a block returns; None where it returns nothing else.
        modulated: (block 0, its arguments) -> the input of its attention.
    """

    names: tuple[str, ...]
    image: int | None
    modulated: Callable[[Any, Values], Tensor]


LISTS: dict[str, Lists] = {
    "DiTTransformer2DModel": Lists(("transformer_blocks",), None, _dit),
    "PixArtTransformer2DModel": Lists(("transformer_blocks",), None, _pixart),
    "SD3Transformer2DModel": Lists(("transformer_blocks",), 1, _zero),
    "FluxTransformer2DModel": Lists(("transformer_blocks", "single_transformer_blocks"), 1, _zero),
    "LuminaNextDiT2DModel": Lists(("layers",), None, _lumina),
    "WanTransformer3DModel": Lists(("blocks",), None, _wan),
}


class Blocks:
    """The blocks of one network, one after another.

    Args:
        network: of a class that is listed, or of one made from it.

    Raises:
        ValueError: for another.
    """

    def __init__(self, network: Module) -> None:
        network = plain(network)
        found = [LISTS[kind.__name__] for kind in type(network).__mro__ if kind.__name__ in LISTS]
        if not found:
            raise ValueError(
                f"the blocks of {type(network).__name__} are not known: those of {', '.join(LISTS)} are; epd.Native "
                "takes what diffusers has for others, and epd.Reuse any network"
            )
        self._lists = found[0]
        self.modules = [block for name in found[0].names for block in network.get_submodule(name).children()]
        self._names = [list(inspect.signature(plain(block).forward).parameters) for block in self.modules]
        self._asks, self._normed = False, None

    def __len__(self) -> int:
        return len(self.modules)

    def arguments(self, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Of a call of this block, by name."""
        return dict(zip(self._names[place], args, strict=False)) | kwargs

    def modulated(self, call: Values) -> Tensor:
        """(R, T, C) what the first attention of block 0 sees."""
        self._asks, self._normed = True, None
        try:
            return self._lists.modulated(self.modules[0], call)
        finally:
            self._asks = False

    def remember(self, site: Site) -> None:
        """Lets block 0 take the norm of its input that `modulated` made just before, where it is not compiled."""
        first = self.modules[0]
        if plain(first) is first:
            site.cover(first.get_submodule("norm1"), self._norm)

    def _norm(self, original: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        made, self._normed = self._normed, None
        if made is not None and made[0] is x:
            return made[1]
        output = original(x, *args, **kwargs)
        if self._asks:
            self._normed = x, output
        return output

    def image(self, output: Any) -> Tensor:  # noqa: ANN401
        """(R, T, C) the image's tokens in what a block returned."""
        return output if self._lists.image is None else output[self._lists.image]

    def passed(self, call: Values, image: Tensor | None = None) -> Any:  # noqa: ANN401
        """What a block returns that changes nothing, or nothing but the image's tokens."""
        self._normed = None
        image = call[HIDDEN] if image is None else image
        if self._lists.image is None:
            return image
        return (image, call[TEXT]) if self._lists.image == 0 else (call[TEXT], image)

    def spread(self, call: Values, output: Any, index: Tensor) -> Any:  # noqa: ANN401
        """What a block returned for these rows, in all rows: the others as they came."""
        if self._lists.image is None:
            return call[HIDDEN].index_copy(0, index, output)
        order = (HIDDEN, TEXT) if self._lists.image == 0 else (TEXT, HIDDEN)
        pairs = zip(order, output, strict=True)
        return tuple(None if part is None else call[name].index_copy(0, index, part) for name, part in pairs)


def plain(module: Module) -> Module:
    """The module itself, where it stands compiled in its own place."""
    return module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module


def rows_of(call: Values, index: Tensor, rows: int) -> dict[str, Any]:
    """The arguments of a block for these rows, (R',), of so many."""
    return {name: _rows(name, value, index, rows) for name, value in call.items()}


def _rows(name: str, value: Any, index: Tensor, rows: int) -> Any:  # noqa: ANN401
    if name in SHARED:
        return value
    if isinstance(value, Tensor):
        return value.index_select(0, index.to(value.device)) if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {key: _rows(key, entry, index, rows) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_rows(name, entry, index, rows) for entry in value)
    return value
