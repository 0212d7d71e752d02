"""Published tables become ours: `table_from_published("network-snapshot.pkl")`.

A published file holds no noise levels (only some keep those of their training): they follow from its schedule and from
the model that its data set names.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..formats.published import JSON, PLUGIN, Published, read_published
from ..formats.published_sources import Betas, Source, source_of
from . import schedules
from .registry import PUBLISHED_SCHEDULES, SCHEDULES, SHIFTED, Ends, make_sigmas
from .table import Provenance, Table, TableError

SAME_GRID = 0.01  # their float32 time_uniform ends on 0.002013 for 0.002; another schedule is farther away


@dataclass(frozen=True)
class Grid:
    """Where a table's sigmas come from; what is None is taken from the file.

    Args:
        schedule: `polynomial`, `logsnr`, `time_uniform`, `discrete` or `flowmatch`.
        sigma_min, sigma_max: the ends (of a flow schedule: of the ramp before its shift).
        rho: exponent of the schedule.
        shift: of a flow schedule.
        mu: of a flow schedule, shift = e^mu; it outranks `shift`.
    """

    schedule: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    shift: float | None = None
    mu: float | None = None


def table_from_published(
    path: str | os.PathLike[str], sigmas: Sequence[float] | None = None, grid: Grid | None = None
) -> Table:
    """A published `.pkl` or `.npz` as a Table; nothing in the file is executed.

    Args:
        path: the file.
        sigmas: (N+1,) noise levels, in place of the file's; by default they are rebuilt in float64 as the published
            sampler makes them, and where a file that holds its own disagrees, the file's are taken.
        grid: what to rebuild them from, over what the file says.

    Raises:
        PublishedTableError: for a file that is no published table.
        TableError: where the noise levels cannot be known, or the numbers make no table.
    """
    published = read_published(path)
    levels, note = (np.asarray(sigmas, np.float64), "") if sigmas is not None else _levels(published, grid or Grid())
    m = published.metadata
    plugin = m.get("sampler_stu") == PLUGIN
    order = m.get("max_order") if plugin else 1
    try:
        return Table(
            sigmas=levels,
            nodes=published.nodes,
            weights=published.weights,
            slope_scale=published.slope_scale,
            sigma_scale=published.sigma_scale,
            order=order if type(order) is int else 1,
            afs=m.get("afs") is True,
            provenance=_provenance(published, Path(path).name, note, grid or Grid()),
        )
    except TableError as error:
        raise TableError(f"{path}: {error}") from error


def _levels(published: Published, choice: Grid) -> tuple[np.ndarray, str]:
    stored = published.sigmas
    if stored is not None and choice == Grid() and "schedule_type" not in published.metadata:
        return stored, ""
    try:
        rebuilt = rebuild_sigmas(published.metadata, len(published.nodes), choice)
    except ValueError as error:
        if stored is None or choice != Grid():
            raise TableError(f"the noise levels cannot be rebuilt: {error}") from error
        return stored, f"Sigmas as the file holds them: {error}."
    if stored is None or choice != Grid() or bool((np.abs(stored / rebuilt - 1) <= SAME_GRID).all()):
        return rebuilt, ""
    return stored, "Sigmas as the file holds them: its schedule gives others."


def alphas_cumprod(betas: Betas) -> Tensor:
    """(1000,) float64, of betas linear in their square roots. Reference: arXiv 2112.10752, Appendix."""
    ramp = torch.linspace(betas.first**0.5, betas.last**0.5, 1000, dtype=torch.float64)
    return torch.cumprod(1 - ramp**2, 0)


def sigma_range(source: Source) -> tuple[float, float] | None:
    """sigma_min, sigma_max of a model, where they are known."""
    if source.betas is None:
        return source.ends
    ends = alphas_cumprod(source.betas)[[0, -1]]
    low, high = ((1 - ends) / ends).sqrt().tolist()
    return low, high


def rebuild_sigmas(metadata: Mapping[str, JSON], steps: int, choice: Grid = Grid()) -> np.ndarray:  # noqa: B008 - frozen
    """(N+1,) noise levels of a published set-up, in float64 (its flow schedules: rounded to float32, as they were).

    Raises:
        ValueError: when the metadata do not say enough; it names what to give.
    """
    g = completed(metadata, choice)
    source = source_of(metadata)
    if g.schedule is None:
        raise ValueError("the file names no schedule: give --schedule, or --sigmas")
    if g.sigma_min is None or g.sigma_max is None:
        raise ValueError(
            f"the data set {metadata.get('dataset_name')!r} is unknown, and with it sigma_min and sigma_max: "
            "give them, or --sigmas"
        )
    low, high, rho = g.sigma_min, g.sigma_max, 7.0 if g.rho is None else g.rho
    if g.schedule == SHIFTED:
        return schedules.flow_shift(steps, g.shift or 1.0, g.mu, low, high).float().double().numpy()
    if g.schedule not in PUBLISHED_SCHEDULES:
        raise ValueError(f"schedule = {g.schedule!r} is unknown: give one of {', '.join(PUBLISHED_SCHEDULES)}")
    betas = source.betas if source else None
    if SCHEDULES[g.schedule].timesteps and betas is None:
        text = f"schedule = {g.schedule!r} needs a latent model whose training noise is known: give --sigmas"
        raise ValueError(text)
    ends = Ends("ve", low, high, alphas_cumprod(betas) if betas else None)
    return make_sigmas(g.schedule, steps, ends, rho).numpy()


def completed(metadata: Mapping[str, JSON], choice: Grid) -> Grid:
    """`choice`, completed by the file's attributes, then its backend's, its training's, its model's."""
    source, spread = source_of(metadata), None
    loss, backend = metadata.get("loss_fn"), metadata.get("backend_config")
    places = [metadata, *(place for place in (backend, loss) if isinstance(place, dict))]
    if source is not None:
        spread = sigma_range(source)
    # A discrete model's ends are exact only when computed; a file may hold them in float32.
    if source is not None and source.betas is not None and spread is not None:
        places.insert(0, {"sigma_min": spread[0], "sigma_max": spread[1]})
    elif source is not None and spread is not None:
        places.append({"sigma_min": spread[0], "sigma_max": spread[1], "flowmatch_shift": source.shift})
    names = {"schedule": "schedule_type", "rho": "schedule_rho", "shift": "flowmatch_shift", "mu": "flowmatch_mu"}
    out: dict[str, Any] = {}
    for item in dataclasses.fields(Grid):
        value = getattr(choice, item.name)
        out[item.name] = value if value is not None else _first(places, names.get(item.name, item.name))
    if choice.shift is not None and choice.mu is None:
        out["mu"] = None  # a shift that the caller chose is not outranked by the file's mu
    return Grid(**out)


def _first(places: Sequence[Mapping[str, JSON]], key: str) -> JSON:
    kinds = (str,) if key == "schedule_type" else (int, float)
    values = (place.get(key) for place in places)
    return next((v for v in values if isinstance(v, kinds) and not isinstance(v, bool)), None)


def _provenance(published: Published, name: str, note: str, choice: Grid) -> Provenance:
    m, source = published.metadata, source_of(published.metadata)
    g = completed(m, choice)
    # Only the refined release writes its backend's name.
    citation = "arXiv 2512.22796" if "backend" in m else "arXiv 2507.14797"
    rate, size = m.get("guidance_rate"), m.get("img_resolution")
    size = source.pixels if source and source.pixels else size
    guided = m.get("guidance_type") in ("cfg", "uncond")
    return Provenance(
        model=source.model if source else str(m.get("dataset_name") or ""),
        path="" if g.schedule is None else "flow" if g.schedule == SHIFTED else "ve",
        schedule=g.schedule or "",
        guidance=float(rate) if guided and isinstance(rate, (int, float)) else None,
        prediction=source.prediction if source else "",
        resolution=(size, size) if type(size) is int else (),
        citation=citation,
        notes=" ".join(part for part in (f"Converted from {name}.", note) if part),
        metadata=dict(m),
    )
