"""Video UNets computed in parts: the same numbers in less memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from ..denoisers.live_memory import LiveMemory
from ..pipelines.placement import caches
from .cuts import Cuts, Sizes, put
from .moment import Moment, Work
from .site import Site

PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # beyond, parts are small beside what is kept whole
OFFLOADED = "_hf_hook"  # who moves weights when a module is called
CHUNKED = ("_chunk_size", "_chunk_dim")
Peak = Callable[[Sizes], int]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Slices:
    """Computes a video UNet (AnimateDiff, SVD) in parts, exactly: only the memory of a network call changes.

    Layers within a frame take some frames at once, layers over time some pixels with all their frames; group
    normalisations over time take the statistics of the whole. Where gradients are recorded, nothing is cut: they keep
    all that is inside.

    Args:
        bytes: most bytes that a network call may make and keep alive together (`Measurement.peak`), weights and
            arguments apart: the largest parts that fit are found at the first call of each size, without computing.
        rows: in place of bytes, frames of all samples at once, from 1; None: all.
        pixels: and pixels of all samples at once, from 1; None: all. Motion layers need the most memory.
        parts: in their place, so many parts of each layer's frames or pixels, whichever its resolution.

    Raises:
        ValueError: for bytes, parts and sizes together, none of them, or one below 1; in a call, for bytes that are not
            enough, naming the fewest that are.

    Reference: arXiv 2411.01171, whose group normalisation is of each part.
    """

    bytes: int | None = None
    rows: int | None = None
    pixels: int | None = None
    parts: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given or (("bytes" in given or "parts" in given) and len(given) > 1):
            raise ValueError(f"{given} does not say how to cut: give either bytes=, parts=, or rows= and pixels=")
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")

    def attach(self, site: Site) -> Slicing:
        """Covers the modules that can be computed in parts.

        Raises:
            ValueError: for another network, one whose feed-forward layers are cut already, or a cache of diffusers.
        """
        return Slicing(self, site)

    def plan(self, calls: Sequence[Moment]) -> list[Work]:
        """All of it."""
        return [Work()] * len(calls)


class Slicing:
    """See `Live`."""

    def __init__(self, settings: Slices, site: Site) -> None:
        self.cuts = Cuts()
        self._settings, self._site = settings, site
        self._network = site.only
        if caches(self._network):
            raise ValueError(
                f"a cache of diffusers is on in {type(self._network).__name__}, and a part would be given what it kept "
                "of another: network.disable_cache() first"
            )
        # A function of the arguments' sizes and of nothing that happened: it may outlast a trajectory.
        self._found: dict[tuple[Any, ...], Sizes] = {}
        if not put(site, self.cuts, self._network):
            raise ValueError(
                f"{type(self._network).__name__} has no layers over time that Slices knows: it cuts UNetMotionModel "
                "(AnimateDiff) and UNetSpatioTemporalConditionModel (SVD); for transformers, "
                "network.enable_forward_chunking() of diffusers spares memory"
            )
        for name, module in self._network.named_modules():
            size, axis = (vars(module).get(key) for key in CHUNKED)
            if size is not None and axis == 0:
                raise ValueError(
                    f"{name} cuts its rows in parts of {size} itself: network.disable_forward_chunking() first"
                )
        site.cover(self._network, self._called)

    def begin(self) -> None:
        pass

    def before(self, now: Moment) -> None:
        return None

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        return slopes

    def stored(self) -> int:
        return 0

    def _called(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self._site.now is None or _recorded(self._network, args, kwargs):
            return original(*args, **kwargs)
        with self.cuts.by(self.sizes(original, args, kwargs)):
            return original(*args, **kwargs)

    def sizes(self, network: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sizes:
        """Of the parts for these arguments.

        Raises:
            ValueError: where no parts are small enough.
        """
        most = self._settings.bytes
        if most is None:
            return Sizes(self._settings.rows, self._settings.pixels, self._settings.parts or 1)
        key = tuple((t.shape, t.dtype, t.device) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor))
        if key not in self._found:
            self._require_placed()
            self._found[key] = self.pretended(network, args, kwargs, functools.partial(largest, most))
        return self._found[key]

    def pretended(
        self, network: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], ask: Callable[[Peak], Answer]
    ) -> Answer:
        """`ask` of the bytes that a call in parts of some sizes keeps alive together: operations without numbers."""

        def asked() -> Answer:
            with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode, Pretending(mode):
                own_args, own_kwargs = tree_map(functools.partial(pretend, mode), (args, kwargs))

                def peak(sizes: Sizes) -> int:
                    with LiveMemory() as memory, self.cuts.by(sizes, sketched=True):
                        network(*own_args, **own_kwargs)
                    return memory.peak

                return ask(peak)

        with ThreadPoolExecutor(1) as pool:  # whoever counts operations counts those of a thread
            return pool.submit(asked).result()

    def _require_placed(self) -> None:
        """Raises: ValueError: where calling a module moves weights, which must not be pretended."""
        for name, module in self._network.named_modules():
            if OFFLOADED in vars(module):
                raise ValueError(
                    f"weights of {name or 'the network'} are moved when it is called, so bytes = "
                    f"{self._settings.bytes} can't be planned: give rows= and pixels="
                )


class Pretending(TorchDispatchMode):
    """Weights become tensors without numbers before they meet others, once; left to the mode it is slower."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        own_args, own_kwargs = tree_map(functools.partial(pretend, self._mode), (args, kwargs or {}))
        return func(*own_args, **own_kwargs)


def pretend(mode: FakeTensorMode, value: Any) -> Any:  # noqa: ANN401
    """A tensor without its numbers; anything else as it is."""
    return mode.from_tensor(value) if isinstance(value, Tensor) and not isinstance(value, FakeTensor) else value


def largest(most: int, peak: Peak) -> Sizes:
    """The largest parts that keep so many bytes; twice as many parts are tried until it is enough, then those between.

    Raises:
        ValueError: naming the fewest bytes.
    """
    tried: dict[int, int] = {}
    for parts in PARTS:
        if parts & (parts - 1):
            continue
        tried[parts] = peak(Sizes(parts=parts))
        if tried[parts] <= most:
            between = [p for p in PARTS if p < parts and p > parts // 2 and peak(Sizes(parts=p)) <= most]
            return Sizes(parts=min([*between, parts]))
        if parts > 1 and tried[parts] > 0.99 * tried[parts // 2]:
            break
    fewest = min(tried.values())
    raise ValueError(
        f"bytes = {most} is not enough: what stays whole and the smallest parts need {fewest}; give bytes={fewest} or "
        "more, fewer frames, or a smaller video"
    )


def _recorded(network: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether gradients of this call will be."""
    if not torch.is_grad_enabled():
        return False
    beside = (t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor))
    return any(t.requires_grad for t in beside) or any(t.requires_grad for t in network.parameters())
