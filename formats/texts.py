"""Texts for people: what may have been meant, and what a file says without what a terminal would obey."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def perhaps(typed: str, known: Iterable[str]) -> str:
    """`perhaps you meant 'name'; ` with the known name that is most like what was typed, whatever the case of either;
    nothing where none is.
    """
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(typed.lower(), by_lower, n=1, cutoff=0.5)
    return f"perhaps you meant {by_lower[close[0]]!r}; " if close else ""


def printable(text: str, kept: str = "") -> str:
    """A text with its control characters, line ends among them, spelt out: `\\n`, `\\x1b`.

    Args:
        kept: characters that stay as they are.
    """
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)
