"""The caches of diffusers, told which network call is which: the points of a fan, the branches, where a run begins."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import CacheContext, StateManager
from torch import Tensor
from torch.nn import Module

from ..denoisers.arguments import NetworkArguments
from ..pipelines.frames import frame_of
from ..pipelines.placement import FAN_AWARE
from ..pipelines.scheduler import EPDScheduler
from .moment import Moment, Work
from .native_config import CLOCK, CONFIGS, config_of, retimed, texts_of
from .native_hooks import Hooked, applied
from .site import Site
from .skipping import require_no_cache

HALVED = "uncond_cond_input_kwargs_identifiers"  # FasterCache's arguments with a row per sample


@dataclass(frozen=True)
class Native:
    """A cache of diffusers: `Native(TaylorSeerCacheConfig(cache_interval=3))`.

    TaylorSeer (arXiv 2503.06923), pyramid attention broadcast (2408.12588), FasterCache (2410.19355), MagCache,
    first-block cache, SeaCache (2602.18993). Its state is kept for every point of a fan and every guidance branch
    alone and forgotten when a run begins, so that it works on pipelines that give diffusers no context, under
    learned solvers and in runs of any number of steps. A callback for the current timestep is filled in.

    Args:
        cache: the configuration, or the name of its class.
        settings: `name=value` of what is not left at its default, filled in from a configuration; the entries of a
            list are separated by ;.

    Raises:
        ValueError: for another configuration, or a name or value that it has not.
    """

    cache: Any
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = self.cache
        if not isinstance(given, str):
            object.__setattr__(self, "cache", type(given).__name__)
            object.__setattr__(self, "settings", texts_of(given))
            object.__setattr__(self, "_given", given)  # functions have no text
            return
        config_of(self.cache, self.settings)

    def attach(self, site: Site) -> Cached:
        """Applies it, in all networks.

        Raises:
            ValueError: where another cache is on, or where it finds nothing to cache.
        """
        live = Cached(site, self.config)
        for network in site.networks.values():
            live.put_in(network, CONFIGS[self.cache])
        return live

    def plan(self, calls: Sequence[Moment]) -> None:
        """It depends on the network, and mostly on the sample."""
        return

    def config(self) -> Any:  # noqa: ANN401 - one of diffusers
        """The configuration, made anew."""
        return config_of(self.cache, self.settings, vars(self).get("_given"))


class Cached:
    """See `Live`.

    Args:
        config: makes the configuration anew.
    """

    def __init__(self, site: Site, config: Callable[[], Any]) -> None:
        self._site, self._config = site, config
        self._hooked: list[Hooked] = []
        self._managers: list[StateManager] = []
        self._states: dict[tuple[Any, int], Any] = {}
        self._made: list[Any] = []
        self._time: float | None = None
        self._frame: Any = None

    def put_in(self, network: Module, apply: str) -> None:
        """Applies the cache to a network."""
        require_no_cache(network)
        self._site.before(network, _nothing)  # refuses what is compiled before anything is done
        config = self._config()
        if CLOCK in vars(config):
            vars(config)[CLOCK] = self._timestep
            if self._frame is None and self._site.pipe is not None:
                scheduler = self._site.pipe.scheduler
                self._frame = scheduler.frame if isinstance(scheduler, EPDScheduler) else frame_of(scheduler)
        self._made.append(config)
        hooked = applied(network, apply, config, self._site)
        self._hooked += hooked
        for one in hooked:
            self._managers += [v for v in vars(one.hook).values() if isinstance(v, StateManager)]
            if CLOCK in vars(one.hook):
                vars(one.hook)[CLOCK] = functools.partial(self._asked, one.hook)
            self._site.cover(one.module, functools.partial(self._module, one))
        self._site.cover(network, functools.partial(self._network, network))
        if network not in FAN_AWARE:
            FAN_AWARE.add(network)
            self._site.adopt(functools.partial(FAN_AWARE.discard, network))

    def begin(self) -> None:
        self._states.clear()
        for one in self._hooked:
            if one.hook._is_stateful:
                one.hook.reset_state(one.module)

    def before(self, now: Moment) -> Work | None:
        for config in self._made:
            retimed(config, now.steps)
            halves = vars(config).get("is_guidance_distilled") is False
            if halves and now.copies != 2:
                raise ValueError(
                    f"{type(config).__name__} predicts the unconditional half of a call, and guidance makes "
                    f"{now.copies} copies in each of these: give it is_guidance_distilled=True"
                )
        return None

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        return slopes

    def stored(self) -> int:
        tensors: dict[int, Tensor] = {}
        for state in [m._state_cache for m in self._managers] + list(self._states.values()):
            _tensors(state, tensors)
        return sum(tensor.nbytes for tensor in tensors.values())

    def _module(self, one: Hooked, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """A module with a hook: the cache works in calls of a run alone."""
        return one.bare(*args, **kwargs) if self._site.now is None else original(*args, **kwargs)

    def _network(self, network: Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        now = self._site.now
        if now is None:
            return original(*args, **kwargs)
        rows = self._site.work.rows
        place = (now.state, now.slots, now.branch, None if rows is None else tuple(int(row) for row in rows))
        self._time = self._told(now, args, kwargs)
        context = CacheContext(
            repr(place), step_index=now.step, num_inference_steps=now.steps, timestep=self._time, sigma=now.sigma[0]
        )
        for manager in self._managers:
            manager.set_context(context)
        own = [one for one in self._hooked if one.network is network]
        named = _by_name(network, args, kwargs)
        lead = NetworkArguments((), named).state.shape[:1]
        for i, one in enumerate(own):
            one.computed = False
            if HALVED in vars(one.hook):
                vars(one.hook)[HALVED] = [k for k, v in named.items() if isinstance(v, Tensor) and v.shape[:1] == lead]
            if "state" in vars(one.hook):  # of those that know no context
                state = self._states.get((place, i))
                if state is None:
                    state = self._states[place, i] = type(one.hook.state)()
                one.hook.state = state
        try:
            output = original(**named)
        finally:
            for manager in self._managers:
                manager.set_context(None)
        left_out = sum(one.share for one in own if not one.computed)
        self._site.record(blocks=1.0 - left_out)
        return output

    def _told(self, now: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """The timestep of the first point, as the pipeline's scheduler counts."""
        if CLOCK not in vars(self._made[0]):
            return math.nan  # nobody asks
        if self._frame is None:
            return float(torch.as_tensor(NetworkArguments(args, kwargs).time).flatten()[0])
        return float(self._frame.precondition(torch.tensor(now.sigma[0], dtype=torch.float64))[3])

    def _timestep(self) -> float:
        assert self._time is not None, "asked during a network call"
        return self._time

    def _asked(self, hook: Any) -> float:  # noqa: ANN401
        """The timestep; outside of every range where nothing is kept, which FasterCache does not ask by itself."""
        empty = "cache" in vars(hook.state) and hook.state.cache is None
        return math.inf if empty else self._timestep()


def _by_name(network: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """FasterCache leaves out the unconditional half of arguments that are passed by name alone."""
    names = list(inspect.signature(type(network).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def _nothing(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    return None


def _tensors(value: Any, found: dict[int, Tensor]) -> None:  # noqa: ANN401
    """Those inside of a state."""
    if isinstance(value, Tensor):
        found[id(value)] = value
    elif isinstance(value, dict):
        for entry in value.values():
            _tensors(entry, found)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _tensors(entry, found)
    elif "__dict__" in dir(value) and not isinstance(value, (type, Module)) and not callable(value):
        _tensors(vars(value), found)
