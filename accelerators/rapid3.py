"""RAPID3: three small heads decide for each sample and step how far to jump, whether to compute, and how densely."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..formats.files import user_path
from .deciding import Deciding
from .heads import Heads, Layout
from .heads_file import load_heads
from .moment import Moment
from .site import Site
from .sparsity import Levels

POLICY = "policy.safetensors"


@dataclass(frozen=True)
class RAPID3:
    """A learned policy leaves out network calls, for each sample on its own; the likeliest choices, nothing is drawn.

    A jump over steps of the solver's grid, and a reused slope, are the last slope taken again: for solvers that ask
    once a step and move along that slope (Euler, DDIM), which is what it is learned with.

    Args:
        policy: file of safetensors that `epd refine-acceleration` wrote, or the folder of its run.

    Raises:
        ValueError: for no file.

    Reference: arXiv 2509.22323.
    """

    policy: str

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RAPID3:
        """The policy of a file or a run's folder, read at once: what is wrong with it is said here.

        Raises:
            ValueError: for anything but such a policy, naming the file, the fault and the remedy.
        """
        own = cls(os.fspath(path))
        load_heads(own._file())
        return own

    def __post_init__(self) -> None:
        if not self.policy:
            raise ValueError("policy = '' names no file: give one that `epd refine-acceleration` wrote")

    def attach(self, site: Site) -> Deciding:
        """Loads the heads; they stay outside of the network."""
        heads, _ = load_heads(self._file())
        return Deciding(site, placed(heads, site), sparsity=levels_of(heads.layout, site))

    def plan(self, calls: Sequence[Moment]) -> None:
        """None: it depends on the sample."""

    def _file(self) -> Path:
        path = user_path(self.policy)
        return path / POLICY if path.is_dir() else path


Policy = RAPID3  # what `epd refine --policy acceleration` learns


def levels_of(layout: Layout, site: Site) -> Levels | None:
    """What the levels of a sparse head are told to, where there is one.

    Raises:
        ValueError: for a network whose attention is not known.
    """
    return Levels(site, layout.levels, layout.block) if layout.levels else None


def placed(heads: Heads, site: Site) -> Heads:
    """The heads where the network computes."""
    parameters = (p for network in site.networks.values() for p in network.parameters())
    return heads.to(next((p.device for p in parameters if p.device.type != "meta"), torch.device("cpu")))
