"""Follows a trainer's updates: progress bar, records, checkpoints."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from .checkpoint import Checkpoint, save_checkpoint
from .folder import Folder
from .processes import Workers
from .progress import bar
from .records import Records

U = TypeVar("U")
CHECKPOINT_SECONDS = 2.0  # a kill costs at most this much work and one update


@dataclass(frozen=True)
class Entry:
    """What a run keeps of one update.

    Args:
        iteration: updates done, of `total`.
        scalars: for TensorBoard, by tag.
        line: for history.jsonl, ready for JSON.
        shown: beside the progress bar.
        checkpoint: to go on from; made only when one is written.
        pictures: for TensorBoard, by tag, uint8 (H, W, 3) each.
    """

    iteration: int
    total: int
    scalars: Mapping[str, float]
    line: Mapping[str, Any]
    shown: Mapping[str, str]
    checkpoint: Callable[[], Checkpoint]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


def follow(
    updates: Iterable[U], entry: Callable[[U], Entry], folder: Folder, workers: Workers, done: int, total: int
) -> U | None:
    """Runs a trainer to its end and returns its last update; None where nothing was left to do.

    The first process shows a bar, records every update and writes checkpoints: after the first update, then every
    CHECKPOINT_SECONDS, and at the end, be it Ctrl-C or an exception.

    Args:
        updates: the trainer, a generator.
        entry: what to keep of an update; asked in the first process only.
        done, total: updates before this call, and in all.
    """
    latest: U | None = None
    if workers.rank > 0:
        return functools.reduce(lambda _, update: update, updates, latest)
    written, kept = time.monotonic(), None
    records = Records(folder, done)
    try:
        with contextlib.closing(records), bar(total, "training", "update", done) as shown:
            for latest in updates:
                kept = entry(latest)
                records.add(kept.iteration, kept.scalars, kept.line, kept.pictures)
                shown.total = kept.total
                shown.set_postfix(kept.shown, refresh=False)
                shown.update(kept.iteration - shown.n)  # a trainer may give up what was left of a start
                if kept.iteration == 1 or time.monotonic() - written > CHECKPOINT_SECONDS:
                    save_checkpoint(folder.checkpoint, kept.checkpoint(), folder.identity)
                    written = time.monotonic()
    finally:
        if kept is not None:
            save_checkpoint(folder.checkpoint, kept.checkpoint(), folder.identity)
    return latest
