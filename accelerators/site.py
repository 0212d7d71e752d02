"""Hooks on the modules of a network, with exact undo: what was there before is there afterwards."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch.nn import Module

from .moment import Moment, Work

Forward = Callable[..., Any]
PreHook = Callable[[Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
PostHook = Callable[[Module, tuple[Any, ...], dict[str, Any], Any], Any]  # output -> another, or None
FORWARD = "forward"


class Under(threading.local):
    """What a thread's call of an accelerated network is, while it is under way.

    Args:
        now: which call; None outside of any.
        state: what the network is given as the state, in all rows.
        work: what of it is computed.
        seconds: spent in hooks of accelerators; counted where `timed`.
        counted: seconds that are put down to somebody already, a hook or what it stands before.
    """

    def __init__(self) -> None:
        self.now: Moment | None = None
        self.state: Any = None
        self.work = Work()
        self.seconds = self.counted = 0.0
        self.timed = False

    def begun(self) -> tuple[float, float]:
        """For `ended`: a clock, as context managers would take longer than what they measure."""
        return self.counted, time.perf_counter()

    def ended(self, begun: tuple[float, float], own: bool) -> None:
        """Puts the time since down to a hook, but for what is put down already, or to nobody that is counted."""
        before, began = begun
        taken = time.perf_counter() - began
        if own:
            self.seconds += taken - (self.counted - before)
        self.counted = before + taken


class Cover:
    """Stands before a method of an object; a copy of the object has none.

    `instead(original, *args, **kwargs)` is called in its place until `remove`, whatever covers the cover.
    """

    def __init__(self, owner: Any, name: str, instead: Callable[..., Any]) -> None:  # noqa: ANN401 - any object
        values = vars(owner)
        self._owner, self._name = owner, name
        self._had, self._before = name in values, values.get(name)  # offload and compiled modules keep their own
        self._original: Callable[..., Any] = getattr(owner, name)
        self._instead: Callable[..., Any] | None = instead
        # Pipelines read signatures. Not the other attributes: of another cover they would be its state.
        functools.update_wrapper(self, self._original, updated=())
        values[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the method's own signature
        if self._instead is None:
            return self._original(*args, **kwargs)
        return self._instead(self._original, *args, **kwargs)

    def remove(self) -> None:
        """Puts back what was there, under later covers, too; under somebody else's it stays and does nothing."""
        self._instead, values = None, vars(self._owner)
        above = values.get(self._name)
        if above is self:
            del values[self._name]
            if self._had:
                values[self._name] = self._before
            return
        while isinstance(above, Cover):
            if above._before is self:
                above._had, above._before, above._original = self._had, self._before, self._original
                return
            above = above._before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # noqa: ANN401
        copied = memo.get(id(self._owner))
        return self if copied is None else MethodType(getattr(type(copied), self._name), copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_method, (self._owner, self._name)


def _own_method(owner: Any, name: str) -> Callable[..., Any]:  # noqa: ANN401
    return MethodType(getattr(type(owner), name), owner)


class Site:
    """Where an accelerator is attached: the networks, and the ways to hook them that can be undone.

    Hooks run in every call of a module, also in calls that are no trajectory's: they ask `now`, and do nothing where it
    is None.

    Args:
        networks: the denoising networks by their names in the pipeline, `network` where there is none.
        pipe: the pipeline; None for a model that has none.
    """

    def __init__(self, networks: Mapping[str, Module], pipe: Any, under: Under) -> None:  # noqa: ANN401
        self.networks = dict(networks)
        self._pipe = None if pipe is None else weakref.ref(pipe)
        self._under = under
        self._undo: list[Callable[[], object]] = []

    @property
    def pipe(self) -> Any:  # noqa: ANN401 - any pipeline of diffusers
        """The pipeline, which is not kept alive; None where there is none."""
        return None if self._pipe is None else self._pipe()

    @property
    def now(self) -> Moment | None:
        """The call of this thread that is under way; None where it is not one of an accelerated run."""
        return self._under.now

    @property
    def work(self) -> Work:
        """What of that call is computed, by all accelerators together: its rows are those that the network is given."""
        return self._under.work

    @property
    def state(self) -> Any:  # noqa: ANN401 - a tensor, or a list with one tensor per row
        """What the network is given as the state in that call, in all of its rows: for `before`, which may leave some
        out. None outside of it.
        """
        return self._under.state

    @property
    def only(self) -> Module:
        """The network, where there is one.

        Raises:
            ValueError: where several share the work (Wan 2.2).
        """
        if len(self.networks) != 1:
            raise ValueError(f"{', '.join(self.networks)} share the work: this accelerator works in one network")
        return next(iter(self.networks.values()))

    def record(self, tokens: float | None = None, blocks: float | None = None) -> None:
        """Says during a call what share of its tokens or blocks is computed, where `before` could not know."""
        own = self._under.work
        self._under.work = replace(
            own, tokens=own.tokens if tokens is None else tokens, blocks=own.blocks if blocks is None else blocks
        )

    def before(self, module: Module, hook: PreHook) -> None:
        """A forward pre-hook (module, args, kwargs) -> (args, kwargs) or None."""
        self._inside(module)
        handle = module.register_forward_pre_hook(self._timed(hook), with_kwargs=True)
        self._undo.append(handle.remove)

    def after(self, module: Module, hook: PostHook) -> None:
        """A forward hook (module, args, kwargs, output) -> output or None."""
        self._inside(module)
        handle = module.register_forward_hook(self._timed(hook), with_kwargs=True)
        self._undo.append(handle.remove)

    def cover(self, module: Module, instead: Callable[..., Any]) -> None:
        """`instead(original, *args, **kwargs)` in place of a module's forward, for what may leave it out.

        The module's hooks run all the same. Diffusers' own hooks cover forward, too.
        """
        self._inside(module)
        self._undo.append(Cover(module, FORWARD, self._around(instead)).remove)

    def adopt(self, undo: Callable[[], object]) -> None:
        """Something else to do when the accelerator is taken out; the last one first."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Takes everything out again."""
        while self._undo:
            self._undo.pop()()

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        under = self._under

        def timed(*args: Any) -> Any:  # noqa: ANN401
            if not under.timed:
                return hook(*args)
            begun = under.begun()
            try:
                return hook(*args)
            finally:
                under.ended(begun, own=True)

        return timed

    def _around(self, instead: Callable[..., Any]) -> Callable[..., Any]:
        """The same, timed without what the module itself takes."""
        under = self._under

        def timed(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if not under.timed:
                return instead(original, *args, **kwargs)

            def inner(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
                begun = under.begun()
                try:
                    return original(*args, **kwargs)
                finally:
                    under.ended(begun, own=False)

            begun = under.begun()
            try:
                return instead(inner, *args, **kwargs)
            finally:
                under.ended(begun, own=True)

        return timed

    def _inside(self, module: Module) -> None:
        """Refuses to hook what is compiled: its graphs would grow with every run.

        Raises:
            ValueError: naming the network.
        """
        if module._compiled_call_impl is not None:
            raise ValueError(
                f"a {type(module).__name__} was compiled in place (compile_repeated_blocks), and nothing can stand "
                "before it: put torch.compile(block) in the place of each block of the list"
            )
        for name, network in self.networks.items():
            if isinstance(network, torch._dynamo.OptimizedModule) and any(m is module for m in network.modules()):
                raise ValueError(
                    f"{name} is compiled, and this accelerator changes what happens inside of it: put the network in "
                    f"as it was before, pipe.{name} = pipe.{name}._orig_mod"
                )
