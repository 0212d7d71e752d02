"""The published tables, by name: `named_table("sd15-rdpo-10x2")`."""

from __future__ import annotations

from pathlib import Path

from ..formats.texts import perhaps
from .table import Table, TableError

FOLDER = Path(__file__).resolve().parent / "published_tables"


def table_names() -> tuple[str, ...]:
    """Every published table that ships: model-method-(steps)x(points)."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def named_table(name: str) -> Table:
    """A published table, with its citation and all it was published with in its provenance.

    `sd15-...`, `sd3-512-...` and `flux-...` are of arXiv 2512.22796 (`rdpo`: after reinforcement learning, `start`:
    before it, `distilled`: matched to a teacher), `cifar10-...` and `lsun-bedroom-...` of arXiv 2507.14797.

    Raises:
        TableError: for an unknown name; it lists the known ones.
    """
    names = table_names()
    if name not in names:
        raise TableError(f"no published table is named {name!r}: {perhaps(name, names)}there are {', '.join(names)}")
    return Table.load(FOLDER / f"{name}.json")
