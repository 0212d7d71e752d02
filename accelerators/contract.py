"""What an accelerator is: numbers that can be attached to networks, and what lives there while it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from .moment import Moment, Work
from .site import Site


class Live(Protocol):
    """An accelerator at work in a network. All its state is forgotten by `begin`; without any it computes everything.

    The order in a call: `before` of every accelerator in the order given, the network's call (with their hooks), and
    after the guided slopes are known `after` of every one in the same order.
    """

    def begin(self) -> None:
        """A trajectory starts: forget all."""
        ...

    def before(self, now: Moment) -> Work | None:
        """A network call starts; what of it will be computed, None: all. Once for each branch."""
        ...

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        """The guided slopes (K, B, *S) of this question; returns those that hold, the same tensor to leave them.

        Rows that `before` left out hold anything, and must be replaced. Once a question, whatever its branches.
        """
        ...

    def stored(self) -> int:
        """Bytes that are kept from call to call now."""
        ...


@runtime_checkable
class Accelerator(Protocol):
    """Makes a network call cheaper: a frozen dataclass of numbers and texts, registered in `names.ACCELERATORS`.

    What a run needs of the network beyond that (a module, a fitted polynomial) is a path or a number, too, so that
    JSON says everything.
    """

    def attach(self, site: Site) -> Live:
        """Puts the hooks in place by the methods of `site`, which take them out again.

        Raises:
            ValueError: naming what does not fit and the remedy; what was put in place is taken out by the caller.
        """
        ...

    def plan(self, calls: Sequence[Moment]) -> Sequence[Work] | None:
        """What of each of these calls will be computed; None where that depends on what is computed."""
        ...
