"""A pipeline's networks replayed from graphs: one for each shape of their calls, such as anchors and fans."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable
from types import MethodType
from typing import Any

from torch.nn import Module

from ..solvers.graphs import MakeGraph
from ..solvers.replay import Replays
from .calls_in_progress import pipeline_call
from .placement import caches, networks_in
from .scheduler import EPDScheduler

Pipe = Any  # any pipeline of diffusers
FORWARD = "forward"
SHAPES = 8  # anchor and fan of four sizes of pictures
PLAIN = (int, float, bool, str, type(None))


def graphed(pipe: Pipe, make_graph: MakeGraph | None = None) -> tuple[weakref.finalize, ...]:
    """Lets the pipeline's runs replay its networks' calls; returns callables that end this.

    `forward` of each network is covered by one that replays what it did before with arguments of these shapes. Calls of
    anybody else, networks that hold caches or whose forward somebody else has covered (offload, `torch.compile`), and
    what no graph can hold run as they are. What a network computes with beside its arguments (places of weights,
    adapters and their strengths, processors of attention) is looked at when a run begins; changed, it is recorded anew.
    """
    return tuple(_covered(name, network, pipe, make_graph) for name, network in networks_in(pipe).items())


def _covered(name: str, network: Module, pipe: Pipe, make_graph: MakeGraph | None) -> weakref.finalize:
    cover = Cover(name, network, pipe, make_graph)
    if FORWARD in vars(network):
        cover.replays.say("something else stands in for its forward, such as offload or torch.compile")
    else:
        network.forward = cover
    release = weakref.finalize(pipe, _uncover, weakref.ref(network), cover)
    release.atexit = False
    return release


def _uncover(network: weakref.ref[Module], cover: Cover) -> None:
    covered = network()
    if covered is not None and vars(covered).get(FORWARD) is cover:
        del covered.forward


class Cover:
    """What stands before a network's forward; a copy of the network has none."""

    def __init__(self, name: str, network: Module, pipe: Pipe, make_graph: MakeGraph | None) -> None:
        self._network, self._pipe = weakref.ref(network), weakref.ref(pipe)
        self._state: Hashable = None
        self.replays = Replays(f"the pipeline's {name}", self._called, make_graph=make_graph, most=SHAPES)
        self.__signature__ = inspect.signature(network.forward)
        self.__name__ = FORWARD

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the network's own signature
        pipe, current, network = self._pipe(), pipeline_call(), self._network()
        assert network is not None, "its forward is called by itself"
        if pipe is None or current is None or current.pipe is not pipe or not current.direct:
            return self._called(args, kwargs)
        if caches(network):
            self.replays.say("a cache that is active in it decides from call to call")
            return self._called(args, kwargs)
        scheduler = vars(pipe).get("scheduler")
        if not isinstance(scheduler, EPDScheduler) or scheduler.step_index is None:
            self._state = state_of(network)
        return self.replays(args, kwargs, state=self._state)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        network = self._network()
        assert network is not None, "its forward is called by itself"
        return _own_forward(network)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return _own_forward(memo[id(self._network())])

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_forward, (self._network(),)


def _own_forward(network: Module) -> Callable[..., Any]:
    return MethodType(type(network).forward, network)


def state_of(network: Module) -> Hashable:
    """What a recording of this network depends on beside its arguments: places of its weights, and plain settings."""
    weights = tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))
    return hash((weights, tuple((id(part), part.training, _plain(vars(part))) for part in network.modules())))


def _plain(values: dict[str, Any]) -> tuple[Hashable, ...]:
    return tuple((name, setting) for name, value in values.items() if (setting := _setting(value)) is not None)


def _setting(value: Any) -> Hashable:  # noqa: ANN401
    """A setting as something hashable; objects that are none by who they are."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_setting, value))
    if isinstance(value, dict):
        return tuple((str(key), _setting(entry)) for key, entry in value.items() if not isinstance(entry, Module))
    return None if inspect.ismethod(value) else id(type(value))
