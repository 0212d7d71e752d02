"""What a TensorBoard log says of a table as a whole: hyperparameters with the final metrics, and text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from ..pipelines.table_description import describe
from ..solvers.table import Table

# All that any log of ours holds: TensorBoard takes its columns from the first log of a folder.
METRICS = (
    "rmse", "median", "worst_local_error", "largest_angle", "explained_1", "explained_2", "explained_3", "gain",
    "gain_low", "gain_high",
)  # fmt: skip
Value = str | int | float


def write_outcome(writer: SummaryWriter, name: str, table: Table, metrics: Mapping[str, float], step: int = 0) -> None:
    """HParams, scalars `final/NAME` (which HParams sorts runs by), and texts `table` and `config` of a learned table.

    Args:
        name: of the model that it was used with.
        metrics: by names out of METRICS; those that are not finite are left out.
        step: at which the scalars and texts are shown: the last update of a run.
    """
    write_hparams(writer, hparams_of(table, name), metrics, step)
    writer.add_text("table", fenced(describe(table)), step)
    config = table.provenance.config
    writer.add_text("config", fenced(json.dumps(config, indent=2)) if config else "none is recorded", step)


def write_hparams(
    writer: SummaryWriter, values: Mapping[str, Value], metrics: Mapping[str, float], step: int = 0
) -> None:
    """One session of HParams, within this very log: `SummaryWriter.add_hparams` would open another run."""
    unknown = set(metrics) - set(METRICS)
    assert not unknown, f"metrics {unknown} have no column"
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    assert writer.file_writer is not None, "a writer is open until it is closed"
    for summary in hparams(dict(values), {f"final/{metric}": 0.0 for metric in METRICS}):
        writer.file_writer.add_summary(summary)
    for metric, value in finite.items():
        writer.add_scalar(f"final/{metric}", value, step)


def hparams_of(table: Table, model: str) -> dict[str, Value]:
    """What a table is and how it was learned: the same names in a run's log and in an inspection's.

    TensorBoard shows the first five of the alphabet, so that those of the training stand last.
    """
    own: dict[str, Value] = {
        "model": model,
        "calls": table.depth,
        "evaluations": table.nfe,
        "steps": table.num_steps,
        "points": table.num_parallel,
        "table": table.digest[:8],
    }
    config = {f"training.{key}": _plain(value) for key, value in table.provenance.config.items()}
    return own | config


def _plain(value: object) -> Value:
    return value if type(value) in (str, int, float) else json.dumps(value, default=str)  # type: ignore[return-value]


def fenced(text: str) -> str:
    """Text as it stands, for TensorBoard's Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
