"""Some tokens of a transformer's call: they alone are computed, and attend to what is kept of the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn import Module

from ..pipelines.placement import caches
from .moment import Moment
from .places import Places, parts_of
from .site import Site


@dataclass
class Call:
    """A network call under way.

    Args:
        store: what is kept of its guidance branch, (copies x samples, N, *) by module.
        active: (rows, n) tokens that are computed, in rising order; None: all.
        kept: (rows,) which row of the store belongs to a row of the call; None: they are the same.
        own: rows of the call that are at the solver's state, which the store follows; None: none is.
        size: rows of the store.
        count: N, once it is known.
    """

    store: dict[str, Tensor]
    active: Tensor | None
    kept: Tensor | None
    own: Tensor | None
    size: int
    count: int = 0
    text: int = 0
    rotary: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None  # of the queries, of the keys


class TokenHooks:
    """Hooks that let a network compute the `active` tokens of each sample, until its site takes them out.

    The picture's tokens are chosen behind the patch embedding; keys and values of the others are those of the last
    state where they were computed, and so is their row of the output. Text is always complete.

    Args:
        site: of one network.
        places: of its class.

    Raises:
        ValueError: for a network whose attention is not what `places` says, naming the remedy.
    """

    def __init__(self, site: Site, places: Places, who: str) -> None:
        self._site, self._places, self._who, self._network = site, places, who, site.only
        self._stores: dict[int, dict[str, Tensor]] = {}
        self._call: Call | None = None
        self._hooked: list[tuple[str, Module]] = []
        self._checked = False
        self.count = 0
        self.active: Tensor | None = None  # (samples, n), of the next call
        self.called: Tensor | Sequence[int] | None = ()  # rows b K + k that the last call computed; None: all
        self._put_in()
        self._require_fits()

    def begin(self) -> None:
        """Forgets all."""
        self._stores, self._checked, self.count, self.active = {}, False, 0, None

    def ready(self, now: Moment) -> bool:
        """Whether what is kept fits this call."""
        output = self._stores.get(now.branch, {}).get(self._places.output)
        return output is not None and len(output) == now.copies * now.samples

    def stored(self) -> int:
        """Bytes."""
        return sum(kept.nbytes for store in self._stores.values() for kept in store.values())

    def _put_in(self) -> None:
        site, network, places = self._site, self._network, self._places
        site.cover(network, self._around)
        site.after(network.get_submodule(places.embedding), self._embedded)
        site.after(network.get_submodule(places.output), self._merging(places.output))
        for path, attention in parts_of(network, places, places.attention):
            for name in ("to_k", "to_v"):
                self._hooked.append((f"{path}.{name}", attention.get_submodule(name)))
                site.after(self._hooked[-1][1], self._merging(f"{path}.{name}"))
            if places.joint_rotary:
                site.before(attention, self._unturned)
                parts = dict(attention.named_children())
                for name, turn in (("norm_q", self._turned_query), ("norm_k", self._turned_key)):
                    site.after(parts[name], turn)
                    added = name.replace("norm_", "norm_added_")
                    if added in parts:
                        site.after(parts[added], self._turned_text)
            if places.length_base:
                site.before(attention, self._as_long)
        if places.query_rotary:
            for _, attention in parts_of(network, places, places.attention + places.crossed):
                site.before(attention, self._chosen_rotary)

    def _require_fits(self) -> None:
        network, places = self._network, self._places
        if caches(network):
            raise ValueError(
                f"{self._who} changes how many tokens there are, and a cache that is active in the network keeps them: "
                "network.disable_cache() first"
            )
        for path, attention in parts_of(network, places, places.attention):
            processor = type(attention.processor).__name__
            if attention.fused_projections:
                raise ValueError(
                    f"{path} has fused projections, and {self._who} needs keys and values of their own: "
                    "network.unfuse_qkv_projections() first"
                )
            if processor not in places.processors:
                raise ValueError(
                    f"{path} attends by {processor}, and {self._who} is known to work with "
                    f"{' and '.join(places.processors)}: network.set_attn_processor(...) one of these, or take the "
                    "adapter out that put it in (pipe.unload_ip_adapter())"
                )
        for path, module in self._hooked:
            if network.get_submodule(path) is not module:
                raise ValueError(f"{path} was replaced (by LoRA?) since {self._who} was attached: accelerate again")

    def _around(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        now = self._site.now
        if now is None:
            return original(*args, **kwargs)
        if not self._checked:
            self._require_fits()
            self._checked = True
        if self._network.is_gradient_checkpointing and torch.is_grad_enabled():  # it calls the blocks outside of this
            raise ValueError(f"{self._who} cannot be computed twice: network.disable_gradient_checkpointing() first")
        state = args[0] if args else kwargs["hidden_states"]
        call = self._call = self._opened(now, state.device)
        try:
            if call.active is not None:
                for name in self._places.residuals:
                    if kwargs.get(name) is not None:
                        kwargs[name] = [self._chosen(value) for value in kwargs[name]]
            return original(*args, **kwargs)
        finally:
            self._call = None

    def _opened(self, now: Moment, device: torch.device) -> Call:
        """What is known of a call before it."""
        points = now.points
        rows = self.called = self._site.work.rows
        own = torch.arange(now.samples * points) if rows is None else torch.as_tensor(list(rows))
        copies = torch.arange(now.copies)[:, None]
        kept = (copies * now.samples + own // points).flatten().to(device)
        state = (own % points == 0).expand(now.copies, -1).flatten().nonzero()[:, 0].to(device)
        size, whole = now.copies * now.samples, rows is None and points == 1
        active = None
        if self.active is not None:
            active = self.active.to(device)
            active = active.repeat(now.copies, 1) if whole else active[kept % now.samples]
        store = self._stores.setdefault(now.branch, {})
        return Call(store, active, None if whole else kept, state if now.state else None, size, self.count)

    @property
    def _now(self) -> Call | None:
        """The call, where a hook runs inside of one."""
        return None if self._site.now is None else self._call

    def _chosen(self, values: Tensor) -> Tensor:
        """(rows, N, *) or (1, N, *) -> (rows, n, *)."""
        assert self._call is not None and self._call.active is not None, "inside of a call of some tokens"
        index = self._call.active[..., None]
        return values.expand(len(index), -1, -1).gather(1, index.expand(-1, -1, values.shape[-1]))

    def _embedded(self, module: Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ANN401
        call = self._now
        if call is None:
            return None
        tokens = output[0] if isinstance(output, tuple) else output
        if call.active is None:
            self.count = call.count = tokens.shape[1]
            return None
        chosen = self._chosen(tokens)
        return (chosen, *output[1:]) if isinstance(output, tuple) else chosen

    def _merging(self, name: str) -> Callable[..., Tensor | None]:
        def merged(module: Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:  # noqa: ANN401
            call = self._now
            if call is None:
                return None
            text = output.shape[1] - (call.count if call.active is None else call.active.shape[1])
            if call.active is None:  # a view would keep the text alive
                self._keep(call, name, output[:, text:].clone() if text and call.kept is None else output[:, text:])
                return None
            kept = call.store[name] if call.kept is None else call.store[name][call.kept]
            index = call.active[..., None].expand(-1, -1, output.shape[-1])
            whole = kept.scatter(1, index, output[:, text:])
            self._keep(call, name, whole)
            return torch.cat([output[:, :text], whole], dim=1) if text else whole

        return merged

    @staticmethod
    def _keep(call: Call, name: str, values: Tensor) -> None:
        """Of the rows at the state."""
        if call.own is None:
            return
        if call.kept is None:
            call.store[name] = values
        elif len(call.own) == call.size:
            call.store[name] = values[call.own]
        elif name in call.store and len(call.store[name]) == call.size:
            call.store[name] = call.store[name].index_copy(0, call.kept[call.own], values[call.own])

    def _unturned(self, module: Module, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Takes the joint rotation away; queries and keys are turned one by one, as they differ in their tokens."""
        call, name = self._now, self._places.joint_rotary
        if call is None or call.active is None or kwargs.get(name) is None:
            return None
        if call.rotary is None:
            cos, sin = kwargs[name]
            call.text = len(cos) - call.count
            call.rotary = (tuple(map(self._query_rotary, (cos, sin))), (cos, sin))  # type: ignore[arg-type]
        return args, {**kwargs, name: None}

    def _query_rotary(self, table: Tensor) -> Tensor:
        """(T + N, D) -> (rows, T + n, D)."""
        assert self._call is not None and self._call.active is not None, "inside of a call of some tokens"
        index, text = self._call.active, self._call.text
        return torch.cat([table[:text].expand(len(index), -1, -1), table[text:][index.to(table.device)]], dim=1)

    def _turned_query(self, module: Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:  # noqa: ANN401
        call = self._now
        if call is None or call.rotary is None:
            return None
        cos, sin = (table[:, -output.shape[1] :].flatten(0, 1) for table in call.rotary[0])  # text stands before
        turned: Any = apply_rotary_emb(output.flatten(0, 1)[None], (cos, sin), sequence_dim=1)  # type: ignore[arg-type]
        return turned[0].unflatten(0, output.shape[:2])

    def _turned_key(self, module: Module, args: Any, kwargs: Any, output: Tensor) -> Any:  # noqa: ANN401
        call = self._now
        if call is None or call.rotary is None:
            return None
        cos, sin = (table[-output.shape[1] :] for table in call.rotary[1])
        return apply_rotary_emb(output, (cos, sin), sequence_dim=1)  # type: ignore[arg-type]

    def _turned_text(self, module: Module, args: Any, kwargs: Any, output: Tensor) -> Any:  # noqa: ANN401
        call = self._now
        if call is None or call.rotary is None:
            return None
        cos, sin = (table[: output.shape[1]] for table in call.rotary[1])
        return apply_rotary_emb(output, (cos, sin), sequence_dim=1)  # type: ignore[arg-type]

    def _chosen_rotary(self, module: Module, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        call, name = self._now, self._places.query_rotary
        if call is None or call.active is None or kwargs.get(name) is None:
            return None
        return args, {**kwargs, name: self._chosen(kwargs[name])}

    def _as_long(self, module: Module, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Another base, for which the number of active tokens gives the factor of all."""
        call, name = self._now, self._places.length_base
        if call is None or call.active is None or kwargs.get(name) is None:
            return None
        active = call.active.shape[1]
        if active == call.count:
            return None
        return args, {**kwargs, name: math.exp(math.log(active) * math.log(kwargs[name]) / math.log(call.count))}
