"""What a run costs, counted while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..denoisers.live_memory import LiveMemory
from .cost import Called, Cost
from .gate import contexts

Shape = Any  # of an argument, where that is a tensor


def _attention(
    query: Shape, key: Shape, value: Shape, dropout_p: float = 0.0, is_causal: bool = False, attn_mask: Shape = None,
    scale: float | None = None, out_shape: Shape = None,
) -> int:  # fmt: skip
    return sdpa_flop_count(query, key, value)


# The processor's own attention, of which torch's counter knows nothing (it would count 0).
FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def flops_of(work: Any) -> int:  # noqa: ANN401 - a callable
    """Floating point operations of matrix products, convolutions and attention while this runs; 2 for each product."""
    with counting() as counter:
        work()
    return counter.get_total_flops()


def counting() -> FlopCounterMode:
    """Torch's counter, with the processor's attention."""
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)


@dataclass
class Measurement:
    """What the network calls of accelerated runs took; `with epd.measure(pipe) as m`.

    Args:
        calls: one by one, in order.
        flops: of the networks, analytic.
        store: most bytes that accelerators kept from call to call.
        peak: most bytes of tensors that were made by one network call and alive together.
        seconds: spent in accelerators around the network and in their hooks: an upper bound where operations are
            counted, too, as that slows each of them.
    """

    calls: list[Called] = field(default_factory=list)
    flops: int = 0
    store: int = 0
    peak: int = 0
    seconds: float = 0.0
    counts: bool = True

    @property
    def cost(self) -> Cost:
        """Rows, tokens and blocks."""
        return Cost.of(self.calls)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around what a network computes."""
        if not self.counts:
            yield
            return
        memory, counter = LiveMemory(), counting()
        with contexts([counter, memory]):
            yield
        self.flops += counter.get_total_flops()
        self.peak = max(self.peak, memory.peak)

    def called(self, called: Called, store: int, seconds: float) -> None:
        """See `gate.Meter`."""
        self.calls.append(called)
        self.store, self.seconds = max(self.store, store), self.seconds + seconds

    def __str__(self) -> str:
        return (
            f"{self.cost}; {self.flops:.4g} FLOPs, {self.peak} bytes alive, {self.store} bytes kept, "
            f"{self.seconds:.3g} s beside the network"
        )
