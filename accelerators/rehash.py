"""Which steps are so similar that one stands for the next: Step Rehash, and the search for its key steps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .deep import Deep
from .moment import Moment, Work
from .reuse import Reuse, Reusing
from .site import Site

POINTS = ("output", "last_temporal", "deep")


@dataclass(frozen=True)
class Rehash:
    """Step Rehash: the network is computed in the key steps; between them a feature of the last one is taken again.

    Args:
        full: key steps, from 0, as `key_steps` finds them; the first and the last step always are.
        reuse: what is taken again. `output`: the slope, so that nothing is computed between (the published method,
            taken literally, where neither state nor time enters behind the last temporal layer). `last_temporal`:
            in Stable Video Diffusion the input of the last block's last temporal convolution, which is computed anew
            with its time. `deep`: in UNets the input of the last up block; it and the first down block are computed
            anew, as in DeepCache.

    Raises:
        ValueError: for no step, a negative one, or another point.

    Reference: arXiv 2411.01171, section 3.3; DeepCache, arXiv 2312.00858.
    """

    full: tuple[int, ...]
    reuse: Literal["output", "last_temporal", "deep"] = "output"

    def __post_init__(self) -> None:
        object.__setattr__(self, "full", tuple(sorted({int(n) for n in self.full})))
        if not self.full or self.full[0] < 0:
            raise ValueError(f"full = {list(self.full)} must be solver steps from 0: give one at least")
        require_point(self.reuse)

    def attach(self, site: Site) -> Rehashing | Deep:
        """Covers the blocks that are left out.

        Raises:
            ValueError: for a network that has no such point.
        """
        return Rehashing(self) if self.reuse == "output" else Deep(site, self.reuse, self.is_full)

    def plan(self, calls: Sequence[Moment]) -> Sequence[Work] | None:
        """Known beforehand for the output; which share is left out of a UNet its weights say."""
        return self.between(calls[0].steps).plan(calls) if calls and self.reuse == "output" else None

    def is_full(self, now: Moment) -> bool:
        """Whether the network is computed."""
        return now.first or now.last or now.step in self.full

    def between(self, steps: int) -> Reuse:
        """What a run of so many steps does."""
        return Reuse(tuple(n for n in range(1, steps - 1) if n not in self.full) or (steps,))


class Rehashing:
    """See `Live`: reuse of slopes, in steps that are known when the run is."""

    def __init__(self, settings: Rehash) -> None:
        self._settings, self._inner = settings, Reusing(settings.between(1))
        self._begun = False

    def begin(self) -> None:
        self._begun = False

    def before(self, now: Moment) -> Work | None:
        if not self._begun:
            self._inner, self._begun = Reusing(self._settings.between(now.steps)), True
        return self._inner.before(now)

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        return self._inner.after(now, slopes)

    def stored(self) -> int:
        return self._inner.stored()


def require_point(reuse: str) -> None:
    """Raises a ValueError for no point of a network."""
    if reuse not in POINTS:
        raise ValueError(f"reuse = {reuse!r} is unknown: give one of {', '.join(POINTS)}")


def key_steps(similarity: Tensor, threshold: float | None = None, count: int | None = None) -> tuple[int, ...]:
    """Steps that are computed: the first; each that is less similar than the threshold to the last key; the last.

    Args:
        similarity: (N, N) of the steps' features.
        threshold: cosine.
        count: in its place, how many steps at most; the threshold that gives most of them is taken.

    Raises:
        ValueError: for both or none of them, a matrix that is not square, or a count below that of two.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not len(similarity):
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}: give (N, N), one row for each step")
    if (threshold is None) == (count is None):
        raise ValueError("give either a threshold or a count")
    values = similarity.tolist()
    if threshold is not None:
        return _keys(values, threshold)
    assert count is not None
    if count < min(2, len(values)):
        raise ValueError(f"count = {count}: the first and the last step are always computed, give 2 at least")
    levels = sorted({value for row in values for value in row} | {float("inf")})
    return max((k for k in (_keys(values, g) for g in levels) if len(k) <= count), key=len)


def _keys(similarity: list[list[float]], threshold: float) -> tuple[int, ...]:
    def last_key(keys: tuple[int, ...], step: int) -> tuple[int, ...]:
        return (*keys, step) if similarity[keys[-1]][step] < threshold else keys

    last = len(similarity) - 1
    keys = functools.reduce(last_key, range(1, last), (0,))
    return keys if last == 0 else (*keys, last)
