"""How each module of the video UNets is computed in parts: frames are independent in one kind, pixels in the other.

Only the modules' own parts are called, so that hooks, adapters and processors inside of them stay.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.downsampling import Downsample2D
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock, TemporalResnetBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn import GroupNorm, Module

from .group_norm import Statistics, normalised, statistics
from .parts import chosen, ranges, tiles
from .site import Site

Original = Callable[..., Any]
FINER = 2  # resnets, where the features of the way down and up meet and the most is kept beside a part
WIDE, FEW = 4, 64  # a feed-forward layer's own parts, so that it needs no more than attention; tokens in one at least


@dataclass(frozen=True)
class Sizes:
    """Of the parts.

    Args:
        rows: frames of all samples at once where frames are independent; None: all of them.
        pixels: pixels of all samples at once, with all their frames, where pixels are independent; None: all.
        parts: in their place, so many parts of each layer's frames or pixels, whichever its resolution.
    """

    rows: int | None = None
    pixels: int | None = None
    parts: int = 1

    def most(self, count: int, given: int | None, finer: int = 1) -> int:
        """Of so many frames or pixels, how many at once; `finer`: in so many times the parts."""
        if given is None:
            return count if self.parts == 1 else -(-count // (self.parts * finer))
        return given

    @property
    def whole(self) -> bool:
        """Whether nothing is cut."""
        return self == Sizes()


class Cuts(threading.local):
    """How this thread's network call is cut, and what is known of the whole while a part is computed.

    Args:
        sketched: only the largest of the parts is computed, for what it needs; the result holds anything.
    """

    def __init__(self) -> None:
        self.sizes, self.sketched = Sizes(), False
        self.known: dict[Module, Statistics] = {}

    @contextmanager
    def by(self, sizes: Sizes, sketched: bool = False) -> Iterator[None]:
        """Parts of these sizes while this lasts."""
        before = self.sizes, self.sketched
        self.sizes, self.sketched = sizes, sketched
        try:
            yield
        finally:
            self.sizes, self.sketched = before

    @contextmanager
    def of(self, norm: Module, whole: Statistics) -> Iterator[None]:
        """This norm takes the statistics of the whole while this lasts."""
        self.known[norm] = whole
        try:
            yield
        finally:
            del self.known[norm]

    def rows(self, count: int, finer: int = 1) -> list[slice]:
        """Of each part; none where it is not cut."""
        most = self.sizes.most(count, self.sizes.rows, finer)
        if most >= count:
            return []
        parts = ranges(count, most)
        # Twice: there is room for all from the first part on.
        return [max(parts, key=lambda part: part.stop - part.start)] * 2 if self.sketched else parts

    def tiles(self, samples: int, pixels: int) -> list[tuple[slice, slice]]:
        """(samples, pixels) of each part; none where it is not cut."""
        most = self.sizes.most(samples * pixels, self.sizes.pixels)
        if most >= samples * pixels:
            return []
        parts = tiles(samples, pixels, most)
        area = [(own.stop - own.start) * (part.stop - part.start) for own, part in parts]
        return [parts[area.index(max(area))]] if self.sketched else parts

    def whole(self, x: Tensor, norm: GroupNorm) -> Statistics:
        """Of x (B, C, T, *), in pieces that are no larger than the parts."""
        pixels = len(x) * x[0, 0, 0].numel()
        frames = max(1, x.shape[2] * self.sizes.most(pixels, self.sizes.pixels) // pixels)
        return statistics(x[:, :, :frames] if self.sketched else x, norm, frames)


def put(site: Site, cuts: Cuts, network: Module) -> bool:
    """Covers everything in this network that can be computed in parts; whether any of it has frames.

    Args:
        cuts: says how, at each call.
    """
    found = False
    for module in network.modules():
        if isinstance(module, FeedForward):
            site.cover(module, functools.partial(feed_forward, cuts))
        elif isinstance(module, ResnetBlock2D):
            site.cover(module, functools.partial(by_rows, cuts, FINER))
        elif isinstance(module, (Transformer2DModel, Downsample2D, Upsample2D)):
            site.cover(module, functools.partial(by_rows, cuts, 1))
        elif isinstance(module, AnimateDiffTransformer3D):
            found = True
            _norm(site, cuts, module.norm)
            site.cover(module, functools.partial(motion, cuts, module))
        elif isinstance(module, SpatioTemporalResBlock):
            found, own = True, module.temporal_res_block
            _norm(site, cuts, own.norm1)
            _norm(site, cuts, own.norm2)
            site.cover(own, functools.partial(temporal_resnet, cuts, own))
            site.cover(module.time_mixer, functools.partial(mixer, cuts, (own,)))
        elif isinstance(module, TransformerSpatioTemporalModel):
            found = True
            for block in module.transformer_blocks:
                site.cover(block, functools.partial(by_rows, cuts, 1))
            temporal = tuple(module.temporal_transformer_blocks)
            for block in temporal:
                site.cover(block, functools.partial(temporal_block, cuts))
            site.cover(module.time_mixer, functools.partial(mixer, cuts, temporal))
    return found


def _norm(site: Site, cuts: Cuts, norm: GroupNorm) -> None:
    def instead(original: Original, x: Tensor) -> Tensor:
        known = cuts.known.get(norm)
        return original(x) if known is None else normalised(x, norm, known)

    site.cover(norm, instead)


def by_rows(cuts: Cuts, finer: int, original: Original, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """A module whose first argument has independent rows, and so have all arguments with as many."""
    state = args[0] if args else kwargs["input_tensor" if "input_tensor" in kwargs else "hidden_states"]
    parts = cuts.rows(len(state), finer)
    if not parts:
        return original(*args, **kwargs)
    room, piece = None, None
    for part in parts:
        piece = None  # not two of them alive
        piece = original(*chosen(args, len(state), part), **chosen(kwargs, len(state), part))
        own = piece if isinstance(piece, Tensor) else piece[0]
        room = _room(own, len(state)) if room is None else room
        room[part] = own
        del own
    if isinstance(piece, Tensor):
        return room
    return (room,) if isinstance(piece, tuple) else Transformer2DModelOutput(room)


def _room(piece: Tensor, rows: int) -> Tensor:
    last = piece.ndim == 4 and not piece.is_contiguous() and piece.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(rows, *piece.shape[1:], dtype=piece.dtype, device=piece.device, memory_format=order)


def feed_forward(cuts: Cuts, original: Original, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    """A feed-forward layer, (*, C), whose tokens are independent, and which keeps up to 16 numbers for one of them."""
    x = hidden_states.flatten(0, -2)
    parts = [] if cuts.sizes.whole else ranges(len(x), max(FEW, -(-len(x) // WIDE)))
    if len(parts) < 2:
        return original(hidden_states, *args, **kwargs)
    room, piece = None, None
    for part in parts:
        piece = None  # not two of them alive
        piece = original(x[part], *args, **kwargs)
        room = piece.new_empty(len(x), piece.shape[-1]) if room is None else room
        room[part] = piece
    assert room is not None, "there are parts"
    return room.unflatten(0, hidden_states.shape[:-1])


def motion(
    cuts: Cuts, module: AnimateDiffTransformer3D, original: Original, hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None, timestep: Tensor | None = None, class_labels: Tensor | None = None,
    num_frames: int = 1, cross_attention_kwargs: dict[str, Any] | None = None,
) -> Tensor:  # fmt: skip
    """AnimateDiff's motion module, (B T, C, H, W): pixels are independent once its norm has seen them all."""
    x = hidden_states.flatten(2)
    samples = len(x) // num_frames
    parts = cuts.tiles(samples, x.shape[2])
    beside = (encoder_hidden_states, timestep, class_labels)
    if not parts or any(value is not None for value in beside):
        return original(hidden_states, *beside, num_frames, cross_attention_kwargs)
    whole = cuts.whole(x.unflatten(0, (samples, num_frames)).transpose(1, 2), module.norm)
    out = _room(hidden_states, len(x))
    room = out.flatten(2)
    for own, pixels in parts:
        rows = slice(own.start * num_frames, own.stop * num_frames)
        with cuts.of(module.norm, whole.of(own)):
            tile = x[rows, :, pixels].unsqueeze(2)
            room[rows, :, pixels] = original(tile, *beside, num_frames, cross_attention_kwargs).squeeze(2)
    return out


def temporal_resnet(
    cuts: Cuts, module: TemporalResnetBlock, original: Original, input_tensor: Tensor, temb: Tensor
) -> Tensor:
    """SVD's resnet over frames, (B, C, T, H, W): its kernels are one pixel wide, its two norms see all pixels."""
    samples, _, frames, height, width = input_tensor.shape
    parts = cuts.tiles(samples, height * width)
    if not parts:
        return original(input_tensor, temb)
    x, act = input_tensor.flatten(3), module.nonlinearity
    shift = None if module.time_emb_proj is None else module.time_emb_proj(act(temb)).transpose(1, 2)[..., None, None]
    # One room for what is inside and for what comes out; in the caller's order, who makes it (B T, C, H, W) again.
    room = x.new_empty(samples, frames, module.out_channels, height * width).transpose(1, 2)
    whole = cuts.whole(x, module.norm1)
    for own, pixels in parts:
        with cuts.of(module.norm1, whole.of(own)):
            inside = module.conv1(act(module.norm1(x[own, ..., pixels].unsqueeze(-1))))
        room[own, ..., pixels] = (inside if shift is None else inside + shift[own]).squeeze(-1)
        del inside
    whole = cuts.whole(room, module.norm2)
    for own, pixels in parts:
        with cuts.of(module.norm2, whole.of(own)):
            out = module.conv2(module.dropout(act(module.norm2(room[own, ..., pixels].unsqueeze(-1)))))
        beside = x[own, ..., pixels].unsqueeze(-1)
        beside = beside if module.conv_shortcut is None else module.conv_shortcut(beside)
        room[own, ..., pixels] = (beside + out).squeeze(-1)
        del out, beside
    return room.unflatten(3, (height, width))


def temporal_block(
    cuts: Cuts, original: Original, hidden_states: Tensor, num_frames: int, encoder_hidden_states: Tensor | None = None
) -> Tensor:
    """SVD's attention over frames, (B T, H W, C), with a context for every pixel of every sample, (B H W, *, *)."""
    x = hidden_states.unflatten(0, (-1, num_frames))
    samples, _, size, _ = x.shape
    parts = cuts.tiles(samples, size)
    if not parts:
        return original(hidden_states, num_frames, encoder_hidden_states)
    context = None if encoder_hidden_states is None else encoder_hidden_states.unflatten(0, (samples, size))
    out = torch.empty_like(x)
    for own, pixels in parts:
        about = None if context is None else context[own, pixels].flatten(0, 1)
        piece = original(x[own, :, pixels].flatten(0, 1), num_frames, about)
        out[own, :, pixels] = piece.unflatten(0, (-1, num_frames))
        del piece
    return out.flatten(0, 1)


def mixer(
    cuts: Cuts, makers: tuple[Module, ...], original: Original,
    x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """SVD's mix of both, (B, C, T, H, W) or (B T, H W, C), in the place of the second, which nobody else needs."""
    samples, frames = (1, len(x_spatial)) if image_only_indicator is None else image_only_indicator.shape
    if image_only_indicator is None or not cuts.rows(samples * frames):
        return original(x_spatial, x_temporal, image_only_indicator)
    # Somebody who looks at what was made may have kept it.
    out = x_temporal.clone() if any(maker._forward_hooks for maker in makers) else x_temporal
    for b, part in itertools.product(range(samples), cuts.rows(frames) or [slice(0, frames)]):
        where = (
            (slice(b, b + 1), slice(None), part)
            if out.ndim == 5
            else slice(*(b * frames + f for f in (part.start, part.stop)))
        )
        out[where] = original(x_spatial[where], x_temporal[where], image_only_indicator[b : b + 1, part])
    return out
