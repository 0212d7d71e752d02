"""What the README's tables are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "*Not measured yet.*"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def measured_in(*environments: Mapping[str, Any]) -> str:
    """One line on where numbers come from; what differs between environments is named side by side."""
    values: dict[str, dict[str, None]] = {}
    for key, value in (item for environment in environments for item in environment.items()):
        if isinstance(value, (str, int, float)):
            values.setdefault(key, {})[str(value)] = None
    named = [f"{key} {' / '.join(values[key])}" for key in values]
    return f"<sub>Measured with {', '.join(named)}.</sub>" if named else ""
