"""Where a table comes from: recorded with it, never interpreted by the solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """Where a table comes from and what it is for; recorded, never interpreted by the solver.

    Args:
        model: the denoiser's name.
        path: `ve` or `flow`; empty when unknown.
        schedule: name of the schedule that training started from.
        guidance: guidance scale that the table was learned at.
        prediction: what the network predicts (`epsilon`, `v_prediction`, `sample`, `flow`).
        resolution: picture size, pixels.
        seed: training seed.
        config: the training configuration.
        metrics: name -> number, measured after training.
        parent: digest of the table that this one was made from.
        accelerators: that were at work in the network, plain data; none: it was evaluated whole.
        citation: whom to cite.
        notes: anything else, one text; `metadata` keeps an imported file's own entries.
    """

    model: str = ""
    path: str = ""
    schedule: str = ""
    guidance: float | None = None
    prediction: str = ""
    resolution: tuple[int, ...] = ()
    seed: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    parent: str = ""
    accelerators: tuple[dict[str, Any], ...] = ()
    citation: str = ""
    notes: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def require_path(learned_on: str, first_sigma: float, path: str, whose: str, remedy: str) -> None:
    """Refuses a table that cannot work on a path: it was learned on another one, or starts where no flow does.

    Args:
        learned_on: its provenance's path; empty when unknown.
        whose: is `path`, for the message.

    Raises:
        ValueError: naming both paths, or the sigma that a flow does not have, and the remedy.
    """
    if learned_on and learned_on != path:
        raise ValueError(f"the table was learned on the path {learned_on!r}, {whose} is {path!r}: {remedy}")
    if path == "flow" and first_sigma > 1 + 1e-6:
        raise ValueError(f"the table starts at sigma {first_sigma:g}, a flow at 1: {remedy}")
