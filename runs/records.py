"""What a run leaves to look at: TensorBoard scalars and history.jsonl, a line an update."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..formats.files import read_text, write_atomically
from ..solvers.table import Table
from .checkpoint import RunError
from .folder import Folder


class Records:
    """TensorBoard scalars and history.jsonl of a run; after a resume they go on where the checkpoint was.

    Args:
        folder: of the run.
        done: updates that the checkpoint holds; what an interrupted run recorded beyond them is dropped.
    """

    def __init__(self, folder: Folder, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.path.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(folder.tensorboard), purge_step=done + 1)
        kept = []
        if done and folder.history.exists():
            kept = [line for line in read_text(folder.history, RunError).splitlines() if _iteration(line) <= done]
        write_atomically(folder.history, "".join(line + "\n" for line in kept).encode())
        self.file = open(folder.history, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run

    def add(
        self, iteration: int, scalars: Mapping[str, float], line: Mapping[str, Any], pictures: Mapping[str, Tensor]
    ) -> None:
        """One update: scalars by tag for TensorBoard, where they are finite, pictures uint8 (H, W, 3), and what
        history.jsonl says of it.
        """
        for name, value in scalars.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, iteration)
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, iteration, dataformats="HWC")
        # JSON has no infinity, which the loss of a start that overflowed is.
        values = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        self.file.write(json.dumps({"iteration": iteration, **values}, allow_nan=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Ends both files."""
        self.writer.close()
        self.file.close()


def record_outcome(folder: Folder, model: str, table: Table, metrics: Mapping[str, float], step: int) -> None:
    """What a finished run came to, in its TensorBoard log: HParams with final metrics, and the table as text.

    Args:
        metrics: by names out of `outcome.METRICS`.
        step: the last update.
    """
    from torch.utils.tensorboard import SummaryWriter

    from .outcome import write_outcome

    with SummaryWriter(str(folder.tensorboard)) as writer:
        write_outcome(writer, model, table, metrics, step)


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):  # a line that a kill cut short
        return math.inf
