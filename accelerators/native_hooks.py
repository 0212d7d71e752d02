"""A cache of diffusers put into a network, so that its hooks can be found, counted, passed by and taken out again."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers.hooks
from diffusers.hooks.hooks import HookRegistry
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_processor import Attention, MochiAttention
from diffusers.utils import logging
from torch.nn import Module

from ..pipelines.placement import REGISTRY
from .site import FORWARD, Site

LOGGER = "diffusers.hooks"
CACHED = (Attention, MochiAttention, AttentionModuleMixin, FeedForward)
# The setting that says in which modules a cache works.
IDENTIFIERS = {
    "apply_taylorseer_cache": "cache_identifiers",
    "apply_pyramid_attention_broadcast": "spatial_attention_block_identifiers",
    "apply_faster_cache": "spatial_attention_block_identifiers",
}
CONDITIONAL_FIRST = frozenset(("DiTTransformer2DModel", "LuminaNextDiT2DModel"))  # in guidance's rows


@dataclass
class Hooked:
    """A hook of diffusers on a module.

    Args:
        bare: the module's forward without it.
        share: of the weights of the network's blocks.
        computed: in the call that is under way.
    """

    network: Module
    module: Module
    hook: Any
    bare: Callable[..., Any]
    share: float
    computed: bool = False

    def counted(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The module itself."""
        self.computed = True
        return self.bare(*args, **kwargs)


def applied(network: Module, apply: str, config: Any, site: Site) -> list[Hooked]:  # noqa: ANN401
    """Applies a cache; the hooks that it put in, with the undo in `site`.

    Raises:
        ValueError: where there are none; it names what to pass.
    """
    _require_fit(network, apply, config)
    had = {module: (set(_registered(module)), REGISTRY in vars(module), FORWARD in vars(module))
           for module in network.modules()}  # fmt: skip
    site.adopt(functools.partial(_taken_out, network, had))
    with _quiet():
        try:
            getattr(diffusers.hooks, apply)(network, config)
        except IndexError as error:  # of an empty list of blocks
            raise _nothing_found(network, apply) from error
    found = [
        (module, hook) for module in network.modules() for name, hook in _registered(module).items()
        if name not in had[module][0]
    ]  # fmt: skip
    if all(module is network for module, _ in found):
        raise _nothing_found(network, apply)
    _forget_children(network)
    total, out = _weight(network), []
    for module, hook in found:
        inner = hook.fn_ref.original_forward or hook.fn_ref.forward
        one = Hooked(network, module, hook, inner, 0.0 if module is network else _weight(module) / total)
        if hook.fn_ref.original_forward is None:  # it only looks
            one.share = 0.0
        else:
            hook.fn_ref.original_forward = one.counted
        site.adopt(functools.partial(_uncounted, one))
        out.append(one)
    seen: dict[Module, Callable[..., Any]] = {}
    for one in out:  # of several hooks on a module the first one's is bare
        first = seen.setdefault(one.module, one.bare)
        if first is not one.bare:
            one.share = 0.0
    return out


def _weight(module: Module) -> int:
    """Weights of the attentions and feed-forwards of a module; all of one that has none."""
    found, inside = 0, set()
    for part in module.modules():
        if isinstance(part, CACHED) and part not in inside:
            inside.update(part.modules())
            found += sum(p.numel() for p in part.parameters())
    return found or sum(p.numel() for p in module.parameters())


def _uncounted(one: Hooked) -> None:
    if one.hook.fn_ref.original_forward is not None:
        one.hook.fn_ref.original_forward = one.bare


def _taken_out(network: Module, had: dict[Module, tuple[set[str], bool, bool]]) -> None:
    for module in network.modules():
        names, registry, forward = had.get(module, (set(), True, True))
        for name in reversed([name for name in _registered(module) if name not in names]):
            vars(module)[REGISTRY].remove_hook(name, recurse=False)
        if not registry and not _registered(module):
            vars(module).pop(REGISTRY, None)
            if not forward:
                vars(module).pop(FORWARD, None)
    _forget_children(network)


def _registered(module: Module) -> dict[str, Any]:
    registry = vars(module).get(REGISTRY)
    return {} if registry is None else registry.hooks


def _forget_children(network: Module) -> None:
    """Diffusers' list of the registries below."""
    if isinstance(registry := vars(network).get(REGISTRY), HookRegistry):
        registry.invalidate_child_registries_cache()


def _require_fit(network: Module, apply: str, config: Any) -> None:  # noqa: ANN401
    """Raises a ValueError where a cache of diffusers fails in its first run, or confuses guidance's halves."""
    kind = type(network).__name__
    if vars(config).get("is_guidance_distilled") is False and kind in CONDITIONAL_FIRST:
        raise ValueError(
            f"{type(config).__name__} takes the second half of a call for the conditional one, and it is the first of "
            f"{kind}: give it is_guidance_distilled=True, which caches attentions alone"
        )
    if apply == "apply_first_block_cache" and any(vars(m).get("context_pre_only") is True for m in network.modules()):
        raise ValueError(
            f"diffusers' first-block cache fails in {kind}, whose last block returns no text: take "
            "epd.FirstBlock(threshold)"
        )


def _nothing_found(network: Module, apply: str) -> ValueError:
    kind, setting = type(network).__name__, IDENTIFIERS.get(apply)
    if setting is None:
        return ValueError(f"{apply} finds no block in {kind}: take epd.FirstBlock, or epd.Reuse, for it")
    names = {re.sub(r"\\\.\d+", r"\\.\\d+", re.escape(n)) for n, m in network.named_modules() if isinstance(m, CACHED)}
    return ValueError(f"{apply} finds no module in {kind}: give it {setting}={sorted(names)}, or some of them")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings about defaults."""
    logger = logging.get_logger(LOGGER)
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
