"""Coordinates in which equal steps change the end of a trajectory equally, whatever numbers they move."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers.table import Table
from .parametrisation import Parametrisation
from .policy import Policy
from .task import Task

SAMPLES = 64  # whose end points are differentiated
STEP = 1e-2  # of the central differences: above the rounding of float32 networks, below the bends of most numbers
# Directions that hardly move anything are not followed further than ten of the tables' own units.
DAMPING = 1e-2


def whitening(task: Task, base: Table, kind: Parametrisation, seed: int, dtype: torch.dtype) -> Tensor:
    """(D, D) mix of `Structure.of`: normals of standard deviation s in all coordinates together change x_N by s times
    its own root mean square, each direction by as much.

    With J = dx_N / dv in the unmixed coordinates v, H = E[J^T J] / E[x_N^2] = V diag(l) V^T:
    mix = diag(1 / sqrt(D (l + DAMPING))) V^T. The numbers of a table pull on each other: a change of one that ruins
    every picture may do little where another follows it, and isotropic noise can be no wider than the former allows.
    The metric is that of a natural gradient in the samples' space, arXiv 1106.4487 with end points in the place of
    densities.
    """
    structure = Policy(base, kind).structure
    generator = torch.Generator().manual_seed(seed * 1_000_003 - 2)  # of no update's draws, nor of the starts'
    draws = task.draw(SAMPLES, 1, False, generator)
    count, first = len(structure.std), len(structure.shares)
    still = torch.cat([structure.shares, torch.zeros(count, dtype=torch.float64)])

    def ends(values: Tensor) -> Tensor:
        c = structure.coefficients(values.expand(SAMPLES, -1))
        return task.roll_out(c, draws, dtype).states.double().cpu().flatten()

    unit = STEP * torch.eye(len(still), dtype=torch.float64)[first:]
    columns = [(ends(still + row) - ends(still - row)) / (2 * STEP) for row in unit]
    jacobian = torch.stack(columns, 1)
    values, vectors = torch.linalg.eigh(jacobian.T @ jacobian / ends(still).square().sum())
    return (count * (values.clamp_min(0) + DAMPING)).rsqrt()[:, None] * vectors.T
