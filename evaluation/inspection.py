"""What a solver does on its way: where it errs, step by step, and in which directions it went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..denoisers.checks import checked
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model
from ..denoisers.rows import samples_together
from ..pipelines.find import find_table
from ..runs.pictures import to_bytes
from ..runs.progress import progress
from ..solvers.schedules import checked_sigmas
from ..solvers.table import Table
from .batches import Batch, CountingRows, batches_of
from .course import ANCHOR, DENSE, UPDATE, Course, Place, follow, places
from .geometry import Basis, angles, variance_explained
from .metrics import sample_errors
from .plots import Traced

LARGEST_PICTURE = 256  # pixels of a side: larger ones are shown smaller
KEPT = 2**20  # differences of the end points that are kept for their histogram
PICTURES = ("learned state", "converged state", "learned denoised", "converged denoised")


@dataclass(frozen=True)
class Shown:
    """One sample that is looked at closely, N steps.

    Args:
        seed: of the sample.
        pictures: uint8 (4, N+1, H, W, 3), in the order of PICTURES; None where states are no pictures. States are
            divided by sqrt(1 + sigma^2) on a variance-exploding path, to be seen.
        learned, exact: (N+1, 3) and (M+1, 3), the trajectories along the first three principal components of this
            sample's converged one, whose M + 1 points lie evenly in log sigma between the solver's sigmas.
        points: (P, 3), where slopes were asked for, in the same coordinates, in the order of `Inspection.places`.
        explained: (3,), share of the converged trajectory's variance along 1, 2, 3 components.
    """

    seed: int
    pictures: Tensor | None
    learned: Tensor
    exact: Tensor
    points: Tensor
    explained: Tensor


@dataclass(frozen=True)
class Inspection:
    """Everything that is shown of a solver's trajectories on one model; N steps, B samples, all tensors float64.

    Args:
        solver: its name.
        model, path, guidance: of the model.
        table: None for a hand-made solver.
        sigmas: (N+1,).
        samples, seed: B samples, of seeds `seed`, `seed` + 1, ...
        tolerance: of the converged trajectories.
        calls, evaluations: of one sample, recorded.
        spent: network evaluations of one sample that the inspection itself took.
        error: (N+1, B), RMSE of each state to the converged trajectory from the same noise at the same sigma.
        local: (N, B), RMSE after one step that began on the converged trajectory.
        curvature: (N, B), degrees that the ODE's slope turns over each step, on the converged trajectory.
        directions: names of the L directions: `anchor`, `point 1`, ..., `update`.
        angles: (N, L, B), degrees between a direction and the converged trajectory's mean slope over the step; NaN
            where a step has no such direction.
        explained: (B, 3), share of the variance of each converged trajectory along its first 1, 2, 3 components.
        differences: (D,), element by element, the end points less the converged ones, in units of the state.
        places: where slopes were asked for, in order.
        shown: the samples that are looked at closely.
    """

    solver: str
    model: str
    path: str
    guidance: float
    table: Table | None
    sigmas: Tensor
    samples: int
    seed: int
    tolerance: float
    calls: int
    evaluations: int
    spent: float
    error: Tensor
    local: Tensor
    curvature: Tensor
    directions: tuple[str, ...]
    angles: Tensor
    explained: Tensor
    differences: Tensor
    places: tuple[Place, ...]
    shown: tuple[Shown, ...]

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.sigmas) - 1

    @property
    def scale(self) -> Tensor:
        """(N+1,): the size of a state at each sigma: sqrt(1 + sigma^2) on a variance-exploding path, 1 on a flow."""
        return (1 + self.sigmas**2).sqrt() if self.path == "ve" else torch.ones_like(self.sigmas)

    @cached_property
    def worst(self) -> int:
        """The step with the largest mean one-step error beside the size of the state."""
        return int((self.local.mean(1) / self.scale[1:]).argmax())

    def mean_angles(self, name: str) -> Tensor:
        """(N,): mean degrees of a direction to the true mean slope; NaN where a step has no such direction."""
        return self.angles[:, self.directions.index(name)].mean(1)

    def metrics(self) -> dict[str, float]:
        """The numbers that runs are sorted by."""
        end = self.error[-1]
        one, two, three = self.explained.mean(0).tolist()
        return {
            "rmse": float(end.square().mean().sqrt()),
            "median": float(end.median()),
            "worst_local_error": float(self.local.mean(1)[self.worst] / self.scale[1 + self.worst]),
            "largest_angle": float(self.mean_angles(UPDATE).nan_to_num(0.0).max()),
            "explained_1": one,
            "explained_2": two,
            "explained_3": three,
        }


def inspect(
    model: Model,
    solver: Table | str | Path | Traced,
    samples: int = 256,
    batch: int | None = None,
    seed: int = 0,
    shown: Sequence[int] = (0, 1, 2, 3),
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    name: str = "",
) -> Inspection:
    """Follows a solver's trajectories beside the converged ones: errors of every step, directions, shape, pictures.

    A sample takes twice the solver's evaluations, one for each sigma, and those of the converged trajectory, some 200.

    Args:
        solver: a table, or where it is (see `find_table`), or a rule with its sigmas.
        samples: seeds `seed`, ..., that all numbers are of; at least 2.
        batch: samples that are solved together; None: as many as 2^22 numbers of their states, at most 256.
        shown: seeds of the samples whose pictures and projections are kept.
        tolerance: of the converged trajectories; a float32 network supports 1e-5.
        dtype: of the state.
        name: of the solver.

    Raises:
        ValueError: for counts below 1, or sigmas that end at 0.
        ModelError: for a model that cannot be solved.
        FloatingPointError: when the solver leaves the finite numbers, or the converged trajectory cannot be had.
    """
    if samples < 2 or (batch is not None and batch < 1):
        raise ValueError(f"samples = {samples}, batch = {batch}: at least 2 samples, 1 in a batch")
    model = checked(model, dtype)
    solver = find_table(solver) if isinstance(solver, (str, Path)) else solver
    table = solver if isinstance(solver, Table) else None
    rule = solver.rule(model.device) if isinstance(solver, Table) else solver.rule
    sigmas = checked_sigmas(torch.tensor(solver.sigmas) if isinstance(solver, Table) else solver.sigmas)
    if sigmas.ndim > 1:
        raise ValueError(f"sigmas have shape {tuple(sigmas.shape)}: one schedule for all samples can be inspected")
    if not float(sigmas[-1]) > 0:
        raise ValueError(f"sigmas[{len(sigmas) - 1}] = 0: the converged trajectory is known above 0, end there (0.002)")
    size = batch or samples_together((1 + max(DENSE, len(sigmas)), *model.shape), 256)
    with torch.no_grad():
        parts, spent = [], 0
        for each in progress([*batches_of(model, range(seed, seed + samples), size, dtype)], "inspecting", "batch"):
            counting = CountingRows(each.denoiser)
            parts.append(_numbers(follow(rule, counting, each.noise_on_device(), sigmas, tolerance, table), table))
            spent += counting.rows
        closely: list[Shown] = []
        if shown:
            few = Batch(model.for_seeds(shown), unit_noise(shown, model.shape, dtype), model.device)
            course = follow(rule, few.denoiser, few.noise_on_device(), sigmas, tolerance, table)
            pictures = _pictures(model, few.denoiser, course)
            closely = [_shown(k, number, course, pictures) for k, number in enumerate(shown)]
    first = parts[0]
    differences = torch.cat([part.differences for part in parts])
    return Inspection(
        solver=name or (f"table {table.digest[:8]}" if isinstance(solver, Table) else solver.name),
        model=model.name, path=model.path, guidance=model.guidance, table=table, sigmas=sigmas.cpu(), samples=samples,
        seed=seed, tolerance=tolerance, calls=first.calls, evaluations=len(first.places), spent=spent / samples,
        error=torch.cat([part.error for part in parts], 1), local=torch.cat([part.local for part in parts], 1),
        curvature=torch.cat([part.curvature for part in parts], 1), directions=first.directions,
        angles=torch.cat([part.angles for part in parts], 2),
        explained=torch.cat([part.explained for part in parts]),
        differences=differences[:: math.ceil(len(differences) / KEPT)],
        places=first.places, shown=tuple(closely),
    )  # fmt: skip


@dataclass(frozen=True)
class _Numbers:
    """What is kept of a batch, as in `Inspection`."""

    calls: int
    error: Tensor
    local: Tensor
    curvature: Tensor
    directions: tuple[str, ...]
    angles: Tensor
    explained: Tensor
    differences: Tensor
    places: tuple[Place, ...]


def _numbers(course: Course, table: Table | None) -> _Numbers:
    states, exact, single = (part.cpu() for part in (course.states, course.exact, course.single))
    steps = range(len(single))
    names, degrees = _angles(course, table)
    return _Numbers(
        calls=len(course.asks),
        error=torch.stack([sample_errors(x, y) for x, y in zip(states, exact, strict=True)]),
        local=torch.stack([sample_errors(single[n], exact[n + 1]) for n in steps]),
        curvature=torch.stack([angles(course.exact_slopes[n], course.exact_slopes[n + 1]) for n in steps]),
        directions=names,
        angles=degrees,
        explained=variance_explained(course.dense),
        differences=(states[-1].double() - exact[-1].double()).flatten(),
        places=_places(course, table),
    )


def _places(course: Course, table: Table | None) -> tuple[Place, ...]:
    return tuple(place for group in places(course.asks, course.sigmas, table) for place in group)


def _angles(course: Course, table: Table | None) -> tuple[tuple[str, ...], Tensor]:
    """The directions' names, and (N, L, B) degrees to the converged trajectory's mean slope."""
    true, updates = course.exact_means(), course.updates()
    found: dict[tuple[int, str], Tensor] = {}
    if course.analytic is not None:
        found[0, ANCHOR] = angles(course.analytic, true[0])
    for group, slopes in zip(places(course.asks, course.sigmas, table), course.slopes, strict=True):
        for place, direction in zip(group, slopes, strict=True):
            found[place.step, place.name] = angles(direction, true[place.step])
    found |= {(n, UPDATE): angles(updates[n], true[n]) for n in range(len(true))}
    points = sorted({name for _, name in found} - {ANCHOR, UPDATE}, key=lambda name: int(name.split()[1]))
    names = (ANCHOR, *points, UPDATE)
    absent = torch.full_like(found[0, UPDATE], math.nan)
    rows = [torch.stack([found.get((n, name), absent) for name in names]) for n in range(len(true))]
    return names, torch.stack(rows)


def _shown(k: int, seed: int, course: Course, pictures: Tensor | None) -> Shown:
    basis = Basis.of(course.dense[:, k])
    asked = torch.cat([ask.points[:, k] for ask in course.asks]) if course.asks else course.states[:0, k]
    return Shown(
        seed,
        None if pictures is None else pictures[:, :, k],
        basis.project(course.states[:, k]),
        basis.project(course.dense[:, k]),
        basis.project(asked),
        variance_explained(course.dense[:, k : k + 1])[0],
    )


def _pictures(model: Model, denoiser: Denoiser, course: Course) -> Tensor | None:
    """uint8 (4, N+1, B, H, W, 3), in the order of PICTURES; None where decoded states are no pictures."""
    scale = (1 + course.sigmas**2).sqrt().tolist() if model.path == "ve" else [1.0] * len(course.sigmas)
    kinds: list[list[Tensor]] = [[], [], [], []]
    for n, sigma in enumerate(course.sigmas):
        states = course.states[n], course.exact[n]
        for kind, x in enumerate([*(x / scale[n] for x in states), *(denoiser(x, sigma) for x in states)]):
            decoded = model.decode(x)
            if decoded.ndim != 4:
                return None
            kinds[kind].append(to_bytes(_smaller(decoded)))
    return torch.stack([torch.stack(kind) for kind in kinds])


def _smaller(pictures: Tensor) -> Tensor:
    side = max(pictures.shape[2:])
    if side <= LARGEST_PICTURE:
        return pictures
    height, width = (max(1, round(n * LARGEST_PICTURE / side)) for n in pictures.shape[2:])
    return functional.interpolate(pictures.float(), (height, width), mode="area")
