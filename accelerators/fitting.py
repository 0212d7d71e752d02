"""What caches are fitted to: dense runs in which features and their changes are watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .accelerate import accelerate, accelerators_of
from .block_lists import Blocks
from .deep import cut_of
from .moment import Moment, Work
from .rehash import require_point
from .site import Site
from .teacache import TeaCache, fit_polynomial


def step_similarity(target: object, run: Callable[[], object], reuse: str = "output") -> Tensor:
    """How alike the steps of dense runs are, for `key_steps`.

    Args:
        target: a pipeline or a model.
        run: runs it, `lambda: pipe(prompts, ...)`, once or several times in the same number of steps; a few prompts do.
        reuse: the point whose feature is compared, as in `Rehash`.

    Returns:
        (N, N) mean cosine between the features of two steps' states, over samples and runs.

    Raises:
        ValueError: where nothing was run, or runs differ in their steps.
    """
    require_point(reuse)
    watching = Watching(reuse)
    with _watched(target, watching):
        run()
    runs = [features for features in watching.runs if features]
    steps = {tuple(sorted(features)) for features in runs}
    if len(steps) != 1:
        raise ValueError(f"the runs have {sorted(map(len, steps))} steps: give one number of steps, one run at least")
    return torch.stack([similarity_of([run[n] for n in sorted(run)]) for run in runs]).mean(0)


def fit_teacache(target: object, run: Callable[[], object], threshold: float, degree: int = 4) -> TeaCache:
    """TeaCache with the polynomial that fits a model: changes of its output by those of its modulated input.

    Args:
        target: a pipeline or a model with a transformer.
        run: runs it, once or several times; a few prompts do.
        threshold: see `TeaCache`.
        degree: of the polynomial.

    Raises:
        ValueError: for a network whose blocks are not known, or too few calls.
    """
    changes = Changes()
    with _watched(target, changes):
        run()
    return TeaCache(threshold, fit_polynomial(changes.inputs, changes.outputs, degree))


@contextmanager
def _watched(target: object, watcher: Any) -> Iterator[None]:  # noqa: ANN401
    """With this in place of the accelerators that are at work, which are put back."""
    before = accelerators_of(target)
    accelerate(target, watcher)
    try:
        yield
    finally:
        accelerate(target, *before)


class Computing:
    """See `Live`: everything is computed, and nothing kept from step to step."""

    def begin(self) -> None:
        return

    def before(self, now: Moment) -> Work | None:
        return None

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        return slopes

    def stored(self) -> int:
        return 0


@dataclass(frozen=True)
class Watching:
    """Keeps the features of the state's calls: of every run, by step."""

    reuse: str
    runs: list[dict[int, Tensor]] = field(default_factory=list)

    def attach(self, site: Site) -> Watched:
        """Hooks the feature."""
        return Watched(self, site)

    def plan(self, calls: Sequence[Moment]) -> list[Work]:
        """All."""
        return [Work()] * len(calls)


class Watched(Computing):
    """See `Watching`."""

    def __init__(self, settings: Watching, site: Site) -> None:
        self._settings, self._site = settings, site
        if settings.reuse != "output":
            site.after(cut_of(site.only, settings.reuse).kept, self._seen)

    def begin(self) -> None:
        self._settings.runs.append({})

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        if now.state and self._settings.reuse == "output":
            self._keep(now.step, slopes[0])
        return slopes

    def _seen(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        now = self._site.now
        if now is not None and now.state:
            self._keep(now.step, output)

    def _keep(self, step: int, feature: Tensor) -> None:
        run, own = self._settings.runs[-1], feature.detach().clone()
        run[step] = torch.cat([run[step], own]) if step in run else own  # several branches


@dataclass(frozen=True)
class Changes:
    """Keeps by how much modulated inputs and outputs change from step to step, row by row."""

    inputs: list[float] = field(default_factory=list)
    outputs: list[float] = field(default_factory=list)

    def attach(self, site: Site) -> Changing:
        """Covers block 0, hooks the network."""
        return Changing(self, site)

    def plan(self, calls: Sequence[Moment]) -> list[Work]:
        """All."""
        return [Work()] * len(calls)


class Changing(Computing):
    """See `Changes`."""

    def __init__(self, settings: Changes, site: Site) -> None:
        self._settings, self._site, self._blocks = settings, site, Blocks(site.only)
        self._before: dict[Any, tuple[Tensor, Tensor]] = {}
        self._seen = torch.empty(0)
        site.cover(self._blocks.modules[0], self._first)
        site.cover(site.only, self._whole)  # a hook of the network itself would run outside of the call

    def begin(self) -> None:
        self._before.clear()

    def _first(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self._site.now is not None:
            self._seen = self._blocks.modulated(self._blocks.arguments(0, args, kwargs)).detach()
        return original(*args, **kwargs)

    def _whole(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        output, now = original(*args, **kwargs), self._site.now
        if now is None:
            return output
        key, pair = (now.state, now.slots, now.branch), (self._seen, output[0].detach())
        before, self._before[key] = self._before.get(key), pair
        if before is not None and before[0].shape == pair[0].shape:
            for values, old, new in zip((self._settings.inputs, self._settings.outputs), before, pair, strict=True):
                values += change_of(old, new).tolist()
        return output


def change_of(old: Tensor, new: Tensor) -> Tensor:
    """(R,) sum |new - old| / sum |old| of every row."""
    return (new - old).abs().flatten(1).sum(1, dtype=torch.float32) / old.abs().flatten(1).sum(1, dtype=torch.float32)


def similarity_of(features: Sequence[Tensor]) -> Tensor:
    """(N, N) the mean over rows of the cosine between features, N of (R, ...)."""
    rows = torch.nn.functional.normalize(torch.stack([f.detach().float().flatten(1) for f in features]), dim=2)
    return torch.einsum("nrc,mrc->nm", rows, rows) / rows.shape[1]
