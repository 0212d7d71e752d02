"""The known name that somebody may have meant: what errors about unknown names say."""

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
