"""Progress bars with the time left, and who shows them. Imports nothing heavy: `epd --help` comes through here."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
log = logging.getLogger("epd")


def rank() -> int:
    """This process's number, as the launcher tells it; 0 where there is one."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdigit() else 0


def silent() -> bool:
    """Whether no bar is shown: in processes but the first, with -q, and where stderr is not a terminal."""
    return rank() > 0 or log.getEffectiveLevel() > logging.INFO or not sys.stderr.isatty()


def bar(total: int, what: str, unit: str, done: int = 0) -> tqdm[Any]:
    """A bar of `total` units of which `done` are there already; close it, or use it in a `with`."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=what, unit=unit, disable=silent(), dynamic_ncols=True)


def progress(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """The items, with a bar that counts those done."""
    with bar(len(items), what, unit) as shown:
        for item in items:
            yield item
            shown.update(1)
