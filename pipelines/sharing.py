"""Saving, publishing and loading learned solvers, beside the pipeline they were learned for or on their own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.files import user_path, write_atomically
from ..formats.json_text import read_json
from ..solvers.table import Table
from .card import MARK, card
from .find import SUBFOLDER, TABLE_FILE, find_table
from .picture import draw

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE, SAMPLES, CONFIG = "solver.png", "samples.png", "scheduler_config.json"


def save_learned(
    learned: Any,  # noqa: ANN401 - a Table, or a pipeline that uses one
    folder: str | Path,
    metrics: Mapping[str, float] | None = None,
    picture: Image | None = None,
    base_model: str | None = None,
    scheduler_config: Mapping[str, Any] | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    private: bool | None = None,
) -> Path:
    """Writes `epd_scheduler/` (the scheduler's configuration, the table, its picture) and a model card into a folder.

    Nothing else in the folder is touched: a pipeline that `save_pretrained` put there keeps its stock scheduler in
    `model_index.json`, and loads without this package.

    Args:
        learned: a Table, or a pipeline with a learned solver enabled.
        folder: made if missing. Its README.md is written unless there is one that is not ours; then the card goes into
            `epd_scheduler/`.
        metrics: name -> number, shown in the card beside the table's own.
        picture: samples, shown in the card.
        base_model: hub id of the pipeline; default what the table was learned for.
        scheduler_config: of the stock scheduler of a Table's model; default that of the pipeline saved in the folder.
            With neither, only the table is written: `load_learned` needs no more, `EPDScheduler.from_pretrained` does.
        push_to_hub: uploads what was written here (and nothing else of the folder).
        repo_id: on the hub, `name/repository`; default the folder's name in your account.
        private: whether a new repository is private; default as your account has it.

    Returns:
        The `epd_scheduler` folder.

    Raises:
        ValueError: for a pipeline without a learned solver, or a repo_id without push_to_hub.
    """
    if repo_id is not None and not push_to_hub:
        raise ValueError(f"repo_id = {repo_id!r} is given but push_to_hub is False: set it, or leave repo_id out")
    folder = user_path(folder)
    table, scheduler = _table_and_scheduler(learned, scheduler_config or _stock_config(folder))
    target = folder / SUBFOLDER
    target.mkdir(parents=True, exist_ok=True)
    # What is left of another solver would be loaded in the place of this one, or shown beside it.
    for stale in [CONFIG] * (scheduler is None) + [SAMPLES] * (picture is None):
        (target / stale).unlink(missing_ok=True)
    if scheduler is not None:
        scheduler.save_pretrained(target)
    table.save(target / TABLE_FILE)
    images = {PICTURE: draw(table)} if picture is None else {PICTURE: draw(table), SAMPLES: picture}
    for name, image in images.items():
        write_atomically(target / name, _png(image))
    readme = _readme(folder)
    shown = [(target / name).relative_to(readme.parent) for name in images]
    base = table.provenance.model if base_model is None else base_model
    where = repo_id or folder.resolve().name
    text = card(table, where, SUBFOLDER if scheduler is not None else None, metrics or {}, base, shown)
    write_atomically(readme, text.encode())
    if push_to_hub:
        _push(folder, where, private)
    return target


def _table_and_scheduler(learned: Any, config: Mapping[str, Any] | None) -> tuple[Table, Any]:  # noqa: ANN401
    from .scheduler import EPDScheduler

    if isinstance(learned, Table):
        return learned, None if config is None else EPDScheduler.from_table(learned, config)
    scheduler = learned.scheduler
    if not isinstance(scheduler, EPDScheduler) or scheduler.table is None:
        raise ValueError(
            f"the pipeline's scheduler is {type(scheduler).__name__}, which has no learned table: "
            "epd.enable(pipe, table) first, or save the Table itself"
        )
    return scheduler.table, scheduler


def _stock_config(folder: Path) -> dict[str, Any] | None:
    """That of the pipeline that was saved here, if any."""
    path = folder / "scheduler" / CONFIG
    return read_json(path, ValueError, finite=False) if path.exists() else None


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _readme(folder: Path) -> Path:
    """The repository's README.md, unless somebody else wrote one."""
    path = folder / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return folder / SUBFOLDER / "README.md"
    return path


def _push(folder: Path, repo_id: str, private: bool | None) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    ours = [f"{SUBFOLDER}/*"]
    if _readme(folder).parent == folder:
        ours.append("README.md")
    api.upload_folder(
        repo_id=repo.repo_id, folder_path=folder, allow_patterns=ours, commit_message="Add a learned solver"
    )


def load_learned(
    pipe: Any,  # noqa: ANN401 - any pipeline of diffusers
    source: Table | str | Path,
    parallel: bool = True,
    revision: str | None = None,
) -> Table:
    """Puts a saved or published solver into a pipeline, `enable(pipe, find_table(source))`; `disable` takes it out.

    Args:
        pipe: any pipeline that the table fits.
        source: as for `find_table`.
        parallel: as for `enable`.
        revision: on the hub.

    Returns:
        The table.
    """
    from .enable import enable

    table = find_table(source, revision)
    enable(pipe, table, parallel=parallel)
    return table
