"""An inspection in TensorBoard, under names that stay.

The step axis is the solver's own step, 0 to N - 1, or the state's number, 0 to N:

- scalars `error/mean`, `error/median`, `error/q05`, `error/q95` of the states; `local_error/...` the same of single
  steps, by the state that they lead to; `angle/anchor`, `angle/point_1`, ..., `angle/update` and `curvature/mean` in
  degrees, of the steps; `variance_explained/components` along 1, 2, 3 components;
- scalars `final/rmse`, `final/median`, ..., by which HParams sorts runs;
- histograms `end/element_errors` (signed) and `end/sample_errors`;
- images `states/seed_S` and `denoised/seed_S`, learned at the left, converged at the right, one for each state;
- figures (images) `figures/error`, `figures/directions`, `figures/shape`, `figures/table`, `figures/end`,
  `figures/projection_seed_S`, `figures/trajectory_seed_S`;
- texts `verdict`, `table`, `config`.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from ..formats.files import write_atomically
from ..runs.outcome import fenced, write_hparams, write_outcome
from ..runs.pictures import tile
from .inspection import Inspection
from .inspection_text import verdict

log = logging.getLogger("epd")
SUFFIX = ".inspection"
QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}


def write_inspection(i: Inspection, logdir: Path, png: Path | None = None) -> Path:
    """Writes everything into one event file in `logdir`, in place of an earlier inspection's; returns `logdir`.

    Args:
        png: folder for the figures as files, too. Without matplotlib there are no figures.
    """
    drawn = {}
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        log.warning("no figures: matplotlib is not installed; pip install 'epd[plots]'")
    else:
        from .inspection_figures import figures_of, pixels

        drawn = {tag: pixels(figure) for tag, figure in figures_of(i).items()}
    if png is not None:
        for tag, picture in drawn.items():
            _save(picture, png / f"{tag}.png")
    logdir.mkdir(parents=True, exist_ok=True)
    for old in logdir.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    writer = SummaryWriter(str(logdir), filename_suffix=SUFFIX)
    try:
        _scalars(writer, i)
        _pictures(writer, i)
        for tag, picture in drawn.items():
            writer.add_image(f"figures/{tag}", picture, 0, dataformats="HWC")
        writer.add_histogram("end/element_errors", i.differences.numpy(), 0)
        writer.add_histogram("end/sample_errors", i.error[-1].numpy(), 0)
        writer.add_text("verdict", fenced(verdict(i)), 0)
        if i.table is not None:
            write_outcome(writer, i.model, i.table, i.metrics())
        else:
            handmade = {"model": i.model, "table": i.solver, "calls": i.calls, "evaluations": i.evaluations}
            write_hparams(writer, handmade | {"steps": i.num_steps, "points": 1}, i.metrics())
    finally:
        writer.close()
    return logdir


def _save(picture: Tensor, path: Path) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def _scalars(writer: SummaryWriter, i: Inspection) -> None:
    for name, values, first in (("error", i.error, 0), ("local_error", i.local, 1)):
        rows = {"mean": values.mean(1)} | {key: values.quantile(q, 1) for key, q in QUANTILES.items()}
        for key, row in rows.items():
            _series(writer, f"{name}/{key}", row, first)
    for direction in i.directions:
        _series(writer, f"angle/{direction.replace(' ', '_')}", i.mean_angles(direction))
    _series(writer, "curvature/mean", i.curvature.mean(1))
    _series(writer, "variance_explained/components", i.explained.mean(0), 1)


def _series(writer: SummaryWriter, tag: str, values: Tensor, first: int = 0) -> None:
    for n, value in enumerate(values.tolist(), first):
        if value == value:  # NaN: a step without such a direction
            writer.add_scalar(tag, value, n)


def _pictures(writer: SummaryWriter, i: Inspection) -> None:
    for shown in i.shown:
        if shown.pictures is None:
            continue
        images = shown.pictures.permute(0, 1, 4, 2, 3) / 255  # (4, N+1, 3, H, W)
        for kind, pair in (("states", images[:2]), ("denoised", images[2:])):
            for n in range(images.shape[1]):
                sheet = tile(torch.stack([*pair[:, n]]), 2)
                writer.add_image(f"{kind}/seed_{shown.seed}", sheet, n, dataformats="HWC")
