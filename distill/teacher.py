"""Teacher trajectories: solved once, kept on disk, shared between runs and processes."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model
from ..formats.files import write_atomically
from ..runs.progress import progress
from ..solvers import rules, schedules
from ..solvers.exact import converged
from ..solvers.solve import trajectory
from ..solvers.walk import Rule
from .config import DistillConfig

log = logging.getLogger("epd")


def block_size(numbers: int) -> int:
    """Trajectories that are solved together, into one file, by how many numbers a sample has: 64, of small ones more.

    64 are small enough to add to a pool and large enough for one batch of a network; a model whose samples are tiny is
    hardly slower with 256.
    """
    return min(256, max(64, 2**14 // numbers))


def cache_folder() -> Path:
    """$EPD_CACHE, or ~/.cache/epd."""
    return Path(os.environ.get("EPD_CACHE") or Path.home() / ".cache" / "epd")


def _in_dtype(denoiser: Denoiser, dtype: torch.dtype) -> Denoiser:
    """The denoiser asked in the training dtype: the integrator's float64 state would make an exact model slow."""
    return lambda x, sigma: denoiser(x.to(dtype), sigma).to(x.dtype)


@dataclass(frozen=True)
class Teacher:
    """A teacher of one model: seeds -> its states on `sigmas`, cached.

    Args:
        sigmas: (T+1,) float64, where states are wanted; the first is where noise starts and is not returned.
        config: names the teacher, its multiplier and dtype.
        folder: of the cache.
    """

    model: Model
    config: DistillConfig
    sigmas: Tensor
    folder: Path

    def key(self) -> str:
        """What distinguishes a cached trajectory, hashed; the network itself is proven by a probe."""
        told = {
            "model": self.model.name,
            "path": self.model.path,
            "shape": self.model.shape,
            "guidance": self.model.guidance,
            "teacher": self.config.teacher,
            "grid": [] if self.config.teacher == "exact" else self.fine_sigmas().tolist(),
            "sigmas": self.sigmas.tolist(),
            "tolerance": self.config.teacher_tolerance if self.config.teacher == "exact" else None,
            "dtype": self.config.dtype,
            "together": self.together,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]

    def fine_sigmas(self) -> Tensor:
        """The grid of a rule as teacher: every interval split evenly in sigma^(1/rho) (log sigma on a flow path)."""
        m = self.config.teacher_multiplier
        power = 1 / self.config.rho if self.model.path == "ve" else 1.0
        warped = self.sigmas**power
        inner = torch.linspace(0, 1, m + 1, dtype=torch.float64)[:-1]
        fine = (warped[:-1, None] + (warped[1:] - warped[:-1])[:, None] * inner).flatten() ** (1 / power)
        fine[::m] = self.sigmas[:-1]
        return schedules.given(torch.cat([fine, self.sigmas[-1:]]))

    @property
    def together(self) -> int:
        """How many trajectories one block holds."""
        return block_size(math.prod(self.model.shape))

    def block(self, first: int) -> tuple[list[int], Path]:
        """Seeds and file of the block that holds seed `first`."""
        start = first - first % self.together
        return list(range(start, start + self.together)), self.folder / "teachers" / self.key() / f"{start}.safetensors"

    def prepare(self, first: int, count: int, rank: int = 0, ranks: int = 1) -> None:
        """Makes sure that the blocks of seeds first..first+count-1 are on disk; processes share the work."""
        starts = range(first - first % self.together, first + count, self.together)
        for start in progress(starts[rank::ranks], f"teacher ({self.together} a block)", "block"):
            seeds, path = self.block(start)
            if self._read(path, seeds) is None:
                self._write(path, seeds)

    def states(self, seeds: Sequence[int]) -> Tensor:
        """(T, B, *S) on the model's device, in the config's dtype."""
        rows: dict[int, Tensor] = {}
        size = self.together
        for start in sorted({s - s % size for s in seeds}):
            block_seeds, path = self.block(start)
            states = self._read(path, block_seeds)
            if states is None:
                states = self._write(path, block_seeds)
            rows |= {s: states[:, s - start] for s in seeds if s - s % size == start}
        return torch.stack([rows[s] for s in seeds], 1).to(self.model.device)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit noise of these seeds in the training dtype."""
        return unit_noise(seeds, self.model.shape, getattr(torch, self.config.dtype), self.model.device)

    def _solve(self, seeds: list[int]) -> Tensor:
        denoiser, noise = self.model.for_seeds(seeds), self.noise(seeds)
        tolerance = self.config.teacher_tolerance
        with torch.no_grad():
            if self.config.teacher == "exact":
                asked = _in_dtype(denoiser, noise.dtype)
                return converged(asked, noise, self.sigmas, rtol=tolerance, atol=tolerance)[1:]
            states = list(trajectory(self._rule(), denoiser, noise, self.fine_sigmas()))
        return torch.stack(states[:: self.config.teacher_multiplier][1:])

    def _rule(self) -> Rule:
        return {
            "heun": rules.heun(),
            "dpm2": rules.dpm2(),
            "ipndm": rules.ipndm(4, "computed"),
            "dpmpp": rules.dpmpp(3),
            "euler": rules.euler(),
        }[self.config.teacher]

    def _probe(self, seeds: list[int]) -> Tensor:
        """One evaluation of every sample: what proves that a cached file is of this network and these conditions."""
        denoiser: Denoiser = self.model.for_seeds(seeds)
        middle = (self.sigmas[0] * self.sigmas[-1]).sqrt()
        with torch.no_grad():
            x = self.noise(seeds)
            return denoiser(x * middle.to(x.dtype), middle.to(x.device)).cpu()

    def _read(self, path: Path, seeds: list[int]) -> Tensor | None:
        """The cached states, or None where there are none that are whole and of this model."""
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                states, probe = file.get_tensor("states"), file.get_tensor("probe")
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("teacher cache %s is unreadable (%s): solving it again", path, error)
            return None
        now = self._probe(seeds)
        if probe.shape != now.shape or not torch.allclose(probe.double(), now.double(), rtol=1e-3, atol=1e-3):
            log.warning(
                "teacher cache %s is of another network or other conditions under the same name: solving it again", path
            )
            return None
        return states

    def _write(self, path: Path, seeds: list[int]) -> Tensor:
        states = self._solve(seeds).cpu().contiguous()
        if not bool(states.isfinite().all()):
            raise FloatingPointError(
                f"the teacher's trajectories of {self.model.name} are not finite: the denoiser returned NaN or "
                "infinity; in half precision try bfloat16 or float32 for the network"
            )
        write_atomically(path, save({"states": states, "probe": self._probe(seeds)}))
        return states
