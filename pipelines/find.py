"""Where a table is: the one place that turns a path, a published name or a hub id into it."""

from __future__ import annotations

import re
from pathlib import Path

from ..formats.files import user_path
from ..solvers.named import named_table
from ..solvers.table import Table, TableError

SUBFOLDER, TABLE_FILE = "epd_scheduler", "solver.json"
FILES = (".json", ".pkl", ".npz")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def find_table(source: Table | str | Path, revision: str | None = None) -> Table:
    """A table, wherever it is.

    Args:
        source: a Table itself; a file, ours (.json) or published (.pkl, .npz; nothing in it is executed); a folder that
            `epd distill` or `save_learned` wrote; a published table's name; or a hub id `owner/name`, looked for last,
            of which only `epd_scheduler/solver.json` is downloaded.
        revision: branch, tag or commit on the hub.

    Raises:
        TableError: when it is none of them, or holds no valid table.
        TypeError: for anything but a Table, a text or a path.
    """
    if isinstance(source, Table):
        return source
    if not isinstance(source, (str, Path)):
        kind = type(source).__name__
        raise TypeError(f"a table is an epd.Table, a path or a name, no {kind}: Table.from_dict reads a dict")
    path, name = user_path(source), str(source)
    if path.is_dir():
        return Table.load(_inside(path))
    if path.exists() or path.suffix in FILES:
        return Table.load(path)
    if HUB_ID.fullmatch(name):
        return Table.load(_download(name, revision))
    try:
        return named_table(name)
    except TableError as error:
        others = f"a file ({', '.join(FILES)}), a run's folder, a hub id owner/name"
        raise TableError(f"{error}; or give {others}") from error


def _inside(folder: Path) -> Path:
    places = (folder / SUBFOLDER / TABLE_FILE, folder / TABLE_FILE)
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise TableError(
            f"{folder} has neither {SUBFOLDER}/{TABLE_FILE} nor {TABLE_FILE}: give a folder that epd distill or "
            "save_learned wrote"
        )
    return path


def _download(repo_id: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(repo_id, f"{SUBFOLDER}/{TABLE_FILE}", revision=revision)
    except (OSError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TableError(
            f"{repo_id} is no local folder and has no readable {SUBFOLDER}/{TABLE_FILE} on the hub: {first}; offline, "
            "give a folder that save_learned wrote"
        ) from error
