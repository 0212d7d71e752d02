"""What differs between a pipeline or a run of it and what its table was learned for, said once."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from ..solvers.table import Provenance
from .calls_in_progress import PipelineCall
from .cuts import require_whole_steps
from .scheduler import EPDScheduler

Pipe = Any  # any pipeline of diffusers


def compare_run(call: PipelineCall, scheduler: EPDScheduler, state: Tensor | list[Tensor]) -> None:
    """Compares a run's guidance and size with what the table was learned for, and refuses a cut inside a step.

    Args:
        call: of the pipeline.
        state: of its first network call.
    """
    pipe = call.pipe
    require_whole_steps(vars(pipe).get("_denoising_end"), scheduler.calls[scheduler.begin_index or 0 :], len(scheduler))
    # Many pipelines keep it to themselves; those of classes, PixArt and Kandinsky have it as an argument alone.
    learned, guidance = _learned(scheduler), vars(pipe).get("_guidance_scale", call.arguments().get("guidance_scale"))
    known = isinstance(guidance, (int, float))
    if learned.guidance is not None and known and not math.isclose(guidance, learned.guidance):
        _say(scheduler, f"guidance_scale = {guidance:g}, but the table was learned at {learned.guidance:g}")
    factor = vars(pipe).get("vae_scale_factor")
    if learned.resolution and factor is not None and isinstance(state, Tensor) and state.ndim == 4:
        size = tuple(int(side) * factor for side in state.shape[2:])
        resolution = learned.resolution * 2 if len(learned.resolution) == 1 else learned.resolution[-2:]
        if size != resolution:
            _say(scheduler, f"the picture has {size} pixels, but the table was learned at {resolution}")


def compare_model(pipe: Pipe, scheduler: EPDScheduler) -> None:
    """Compares the pipeline's model, its prediction type and its noise levels with the table's."""
    learned, name = _learned(scheduler), str(pipe.config.get("_name_or_path") or "")
    if learned.model and name and Path(learned.model).name != Path(name).name:
        _say(scheduler, f"the table was learned for {learned.model!r}, this pipeline is {name!r}")
    prediction = scheduler.frame.prediction
    recorded = {"flow_prediction": "flow"}.get(learned.prediction, learned.prediction)
    if recorded and recorded != prediction:
        _say(scheduler, f"the table was learned for prediction type {recorded!r}, this network's is {prediction!r}")
    start = 0.0 if scheduler.table is None else float(scheduler.table.sigmas[0])
    most = scheduler.frame.sigma_max
    if start > 1.05 * most:
        _say(scheduler, f"the table starts at sigma {start:g}, but this network was trained up to {most:g}")


def _learned(scheduler: EPDScheduler) -> Provenance:
    return Provenance() if scheduler.table is None else scheduler.table.provenance


def _say(scheduler: EPDScheduler, text: str) -> None:
    if scheduler.first_time(text):
        warnings.warn(text + "; a table learned for this case would do better", stacklevel=3)
