"""Directions and subspaces of trajectories, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = 3


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Degrees (B,), 0 to 180, between the directions a and b (B, *S); NaN where one of them is zero.

    2 atan2(|u - v|, |u + v|) of the unit vectors, exact to the last digits for small angles, too, where the arccosine
    of a cosine is not.
    """
    u, v = (x.detach().cpu().double().flatten(1) for x in (a, b))
    u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)))


def variance_explained(states: Tensor) -> Tensor:
    """(B, 3): share of the variance of each sample's states (T, B, *S) along its first 1, 2, 3 principal components.

    Each sample has components of its own: what is measured is how flat one trajectory is. Of a trajectory that does
    not move, all is explained. Reference: arXiv 2405.11326, Section 3.
    """
    x = states.detach().cpu().double().flatten(2).transpose(0, 1)  # (B, T, D)
    x = x - x.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(x @ x.transpose(1, 2)).clamp(min=0).flip(1)  # (B, T), largest first
    total = values.sum(1, keepdim=True)
    shares = torch.where(total > 0, values.cumsum(1) / total, torch.ones_like(values))
    beyond = shares[:, -1:].expand(-1, max(0, COMPONENTS - shares.shape[1]))
    return torch.cat([shares, beyond], 1)[:, :COMPONENTS]


@dataclass(frozen=True)
class Basis:
    """The first three principal components of one trajectory.

    Args:
        mean: (D,).
        axes: (3, D), orthonormal; zeros where the trajectory has fewer dimensions. Signs are such that the last state
            lies on the positive side.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, states: Tensor) -> Basis:
        """Of the states (T, *S) of one trajectory."""
        x = states.detach().cpu().double().flatten(1)
        mean = x.mean(0)
        _, _, axes = torch.linalg.svd(x - mean, full_matrices=False)
        axes = axes[:COMPONENTS]
        axes = axes * torch.where((x[-1] - mean) @ axes.T < 0, -1.0, 1.0)[:, None]
        return cls(mean, torch.cat([axes, axes.new_zeros(COMPONENTS - len(axes), axes.shape[1])]))

    def project(self, states: Tensor) -> Tensor:
        """(T, 3): where states (T, *S) lie along the components."""
        return (states.detach().cpu().double().flatten(1) - self.mean) @ self.axes.T
