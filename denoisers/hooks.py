"""Hooks on networks. Each network has one pair, whoever wants to change its calls; without users it has none.

The hooks themselves are functions without state: a copied or unpickled network, which nobody hooked, is called as it
is. They stay from the first user to the last: torch goes through a module's forward hooks when a call fails, and one
that came or went in another thread meanwhile would hide the error behind its own.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from .arguments import Keywords, NetworkArguments, Positional

Change = Callable[[Module, NetworkArguments], bool]  # changes a call's arguments; says whether it did
Finish = Callable[[Any], Any]  # output -> output


@dataclass
class _Owner:
    """What is attached to one network, applied in this order, and how many users each of it has."""

    handles: tuple[RemovableHandle, RemovableHandle]
    changes: dict[str, Change] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)


class _UnderWay(threading.local):
    """What is to happen to the output of a network's call that this thread is in, by the network."""

    def __init__(self) -> None:
        self.finish: weakref.WeakKeyDictionary[Module, Finish] = weakref.WeakKeyDictionary()


_owners: weakref.WeakKeyDictionary[Module, _Owner] = weakref.WeakKeyDictionary()
_under_way = _UnderWay()


def attach(network: Module, name: str, change: Change, user: object) -> weakref.finalize:
    """Lets `change` see every call of a network, for as long as a user wants it.

    Args:
        network: gets one forward pre-hook and one forward hook, whatever the number of changes and users.
        name: of the change; users of one name share it, so it is applied once a call.
        change: changes the call's arguments in place and says whether it did; with `call.finish` the output, too.
        user: when it is garbage collected, its use ends.

    Returns:
        A callable that ends this use; calling it again does nothing. The last one to end takes the hook away.
    """
    owner = _owners.get(network)
    if owner is None:
        _drop_copied(network)
        handles = network.register_forward_pre_hook(_before, with_kwargs=True), network.register_forward_hook(_after)
        owner = _owners[network] = _Owner(handles)
    owner.changes[name] = change
    owner.users[name] += 1
    release = weakref.finalize(user, _release, weakref.ref(network), name)
    release.atexit = False
    return release


def attached(network: Module, name: str) -> bool:
    """Whether this change sees the calls of a network, or of what a wrapper (a compiled module) holds directly."""
    owners = (_owners.get(module) for module in (network, *network.children()))
    return any(owner is not None and name in owner.changes for owner in owners)


def _drop_copied(network: Module) -> None:
    """A copy of a hooked network brings a hook along that nobody owns; a second one would apply all changes twice."""
    for key in [key for key, hook in network._forward_pre_hooks.items() if hook is _before]:
        del network._forward_pre_hooks[key], network._forward_pre_hooks_with_kwargs[key]
    for key in [key for key, hook in network._forward_hooks.items() if hook is _after]:
        del network._forward_hooks[key]


def _release(network: weakref.ref[Module], name: str) -> None:
    module = network()
    owner = None if module is None else _owners.get(module)
    if module is None or owner is None:
        return
    owner.users[name] -= 1
    if not owner.users[name]:
        del owner.users[name], owner.changes[name]
    if not owner.users:
        for handle in owner.handles:
            handle.remove()
        del _owners[module]


@torch.compiler.disable  # it reads Python state that changes with every call; on a compiled wrapper it is outside
def _before(module: Module, args: Positional, kwargs: Keywords) -> tuple[Positional, Keywords] | None:
    _under_way.finish.pop(module, None)  # of a call that failed
    owner = _owners.get(module)
    if owner is None:
        return None
    call = NetworkArguments(args, kwargs)
    changed = [change(module, call) for change in owner.changes.values()]
    if call.finish is not None:
        _under_way.finish[module] = call.finish
    return call.pair() if any(changed) else None


@torch.compiler.disable
def _after(module: Module, args: Positional, output: Any) -> Any:  # noqa: ANN401 - any network's output
    finish = _under_way.finish.pop(module, None)
    return None if finish is None else finish(output)
