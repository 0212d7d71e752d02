"""Hooks on networks. Each network has one, whoever wants to change its calls; without users it has none.

The hook itself is a function without state: a copied or unpickled network, which nobody hooked, is called as it is.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from .arguments import Keywords, NetworkArguments, Positional

Change = Callable[[Module, NetworkArguments], bool]  # changes a call's arguments; says whether it did


@dataclass
class _Owner:
    """What is attached to one network, applied in this order, and how many users each of it has."""

    handle: RemovableHandle
    changes: dict[str, Change] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)


_owners: weakref.WeakKeyDictionary[Module, _Owner] = weakref.WeakKeyDictionary()


def attach(network: Module, name: str, change: Change, user: object) -> weakref.finalize:
    """Lets `change` see every call of a network, for as long as a user wants it.

    Args:
        network: gets one forward pre-hook, whatever the number of changes and users.
        name: of the change; users of one name share it, so it is applied once a call.
        change: changes the call's arguments in place and says whether it did.
        user: when it is garbage collected, its use ends.

    Returns:
        A callable that ends this use; calling it again does nothing. The last one to end takes the hook away.
    """
    owner = _owners.get(network)
    if owner is None:
        _drop_copied(network)
        owner = _owners[network] = _Owner(network.register_forward_pre_hook(_before, with_kwargs=True))
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


def _release(network: weakref.ref[Module], name: str) -> None:
    module = network()
    owner = None if module is None else _owners.get(module)
    if module is None or owner is None:
        return
    owner.users[name] -= 1
    if not owner.users[name]:
        del owner.users[name], owner.changes[name]
    if not owner.users:
        owner.handle.remove()
        del _owners[module]


@torch.compiler.disable  # it reads Python state that changes with every call; on a compiled wrapper it is outside
def _before(module: Module, args: Positional, kwargs: Keywords) -> tuple[Positional, Keywords] | None:
    owner = _owners.get(module)
    if owner is None:
        return None
    call = NetworkArguments(args, kwargs)
    changed = [change(module, call) for change in owner.changes.values()]
    return call.pair() if any(changed) else None
