"""Teacher trajectories: solved once, kept on disk, shared between runs and processes."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..denoisers.fingerprint import conditions_digest, model_digest
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Denoiser, Model
from ..formats.files import require_regular, user_path, write_atomically
from ..runs.progress import progress
from ..solvers import schedules
from ..solvers.exact import converged
from ..solvers.questions import unannounced
from ..solvers.registry import most_accurate
from ..solvers.solve import solve, trajectory
from ..solvers.walk import Rule, plan
from .config import DistillConfig

log = logging.getLogger("epd")
MAX_BLOCK = 2**40  # bytes in a file of trajectories
POOL_SEEDS = 2**30  # training noise lies far above the seeds that people sample with
VALIDATION_SEEDS = 2**30 + 2**29
INTEGRATED = 33  # float64 states that `converged` keeps at once, counted
PROOF = 4  # samples that are evaluated to prove the cache of a transparent model
EXACT_EVALUATIONS = 130  # of dopri5 at the default tolerance, measured on the embedded models: 103 to 139


def block_size(numbers: int) -> int:
    """Trajectories that are solved together, into one file, by how many numbers a sample has: 64, of small ones more,
    of large ones fewer.

    64 are small enough to add to a pool and large enough for one batch of a network; a model whose samples are tiny is
    hardly slower with 256. The integrator keeps INTEGRATED states of them: 1.1 GB at most, or one sample's.
    """
    return min(256, max(64, 2**14 // numbers)) if numbers <= 2**16 else max(1, 2**22 // numbers)


def cache_folder() -> Path:
    """$EPD_CACHE, or ~/.cache/epd."""
    return user_path(os.environ.get("EPD_CACHE") or "~/.cache/epd")


def _in_dtype(denoiser: Denoiser, dtype: torch.dtype) -> Denoiser:
    """The denoiser asked in the training dtype: the integrator's float64 state would make an exact model slow."""
    return lambda x, sigma: denoiser(x.to(dtype), sigma).to(x.dtype)


@dataclass(frozen=True)
class Teacher:
    """A teacher of one model: seeds -> its states on `sigmas`, cached.

    Args:
        sigmas: (T+1,) float64, the grid of the table that is learned; the first is where noise starts.
        config: names the teacher, its multiplier and dtype.
        folder: of the cache.
        ends: only the last state is kept and returned, not one for each of sigmas[1:]. A rule still passes through all
            sigmas, in `teacher_multiplier` steps from one to the next; the converged ODE has no need to.
    """

    model: Model
    config: DistillConfig
    sigmas: Tensor
    folder: Path
    ends: bool = False
    _proven: dict[Path, bool] = field(default_factory=dict, init=False, repr=False)  # whether by reading it
    _paths: dict[tuple[int, int], Path] = field(default_factory=dict, init=False, repr=False)

    def key(self) -> str:
        """What distinguishes a cached trajectory, hashed: the network by a fingerprint, where it has one."""
        conditions = {
            "model": self.model.name,
            "path": self.model.path,
            "shape": self.model.shape,
            "guidance": self.model.guidance,
            "teacher": self.config.teacher,
            "grid": [] if self.config.teacher == "exact" else self.fine_sigmas().tolist(),
            "sigmas": (self.sigmas[[0, -1]] if self.ends else self.sigmas).tolist(),
            "tolerance": self.config.teacher_tolerance if self.config.teacher == "exact" else None,
            "dtype": self.config.dtype,
            "together": self.together,
            "weights": self._weights,
        }
        return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:24]

    @functools.cached_property
    def _weights(self) -> str:
        return model_digest(self.model)

    def fine_sigmas(self) -> Tensor:
        """The grid of a rule as teacher: every interval split evenly in sigma^(1/rho), in sigma on a flow path."""
        return schedules.finer(self.sigmas, self.config.teacher_multiplier, self.model.path, self.config.rho)

    @property
    def together(self) -> int:
        """How many trajectories one block holds."""
        return block_size(math.prod(self.model.shape))

    def span(self, seed: int) -> tuple[int, int]:
        """First seed of the block that holds a seed, and the one behind its last; a block ends where its pool ends."""
        start = seed - seed % self.together
        stop = start + self.together
        for first, count in ((POOL_SEEDS, self.config.pool), (VALIDATION_SEEDS, self.config.validation)):
            if first <= seed < first + count:
                start, stop = max(start, first), min(stop, first + count)
        return start, stop

    def path(self, start: int, stop: int) -> Path:
        """The file of a block under its conditions, worked out once; one that was cut short is no whole one's."""
        if (start, stop) not in self._paths:  # blocks are read in every update where they aren't kept
            self._paths[start, stop] = self._path(start, stop)
        return self._paths[start, stop]

    def _path(self, start: int, stop: int) -> Path:
        cut = "" if stop - start == self.together else f"-{stop - start}"
        digest = conditions_digest(self.model, range(start, stop))[:16]
        return self.folder / "teachers" / self.key() / f"{start}{cut}{'-' if digest else ''}{digest}.safetensors"

    def prepare(self, first: int, count: int, rank: int = 0, ranks: int = 1) -> None:
        """Makes sure that the blocks of seeds first..first+count-1 are on disk; processes share the work.

        Raises:
            OSError: where the folder cannot be made, before anything is solved.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"a teacher's trajectories cannot be kept in {self.folder} ({error.strerror}): set EPD_CACHE"
            raise OSError(error.errno, f"{text} to a folder that can be written") from error
        spans = sorted({self.span(seed) for seed in range(first, first + count)})
        for span in progress(spans[rank::ranks], f"teacher ({self.together} a block)", "block"):
            seeds, path = list(range(*span)), self.path(*span)
            if self._read(path, seeds) is None:
                self._write(path, seeds)

    def states(self, seeds: Sequence[int]) -> Tensor:
        """(T, B, *S), or (1, B, *S) of `ends`, in main memory, in the config's dtype."""
        places: dict[tuple[int, int], list[int]] = {}
        for place, seed in enumerate(seeds):
            places.setdefault(self.span(seed), []).append(place)
        dtype, steps = getattr(torch, self.config.dtype), 1 if self.ends else len(self.sigmas) - 1
        out = torch.empty(steps, len(seeds), *self.model.shape, dtype=dtype)
        for span, at in places.items():
            block, path = list(range(*span)), self.path(*span)
            states = self._read(path, block)
            states = self._write(path, block) if states is None else states
            out[:, at] = states[:, [seeds[place] - span[0] for place in at]]
        return out

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit noise of these seeds in the training dtype."""
        return unit_noise(seeds, self.model.shape, getattr(torch, self.config.dtype), self.model.device)

    def _solve(self, seeds: list[int]) -> Tensor:
        denoiser, noise = self.model.for_seeds(seeds), self.noise(seeds)
        tolerance = self.config.teacher_tolerance
        with torch.no_grad(), unannounced():  # the network as it is, whatever the table is learned with
            if self.config.teacher == "exact":
                in_dtype = _in_dtype(denoiser, noise.dtype)
                levels = self.sigmas[[0, -1]] if self.ends else self.sigmas
                return converged(in_dtype, noise, levels, rtol=tolerance, atol=tolerance)[1:]
            if self.ends:
                return solve(self._rule(), denoiser, noise, self.fine_sigmas())[None]
            every = self.config.teacher_multiplier
            walked = enumerate(trajectory(self._rule(), denoiser, noise, self.fine_sigmas()))
            states = [x for i, x in walked if i and i % every == 0]
        return torch.stack(states)

    @property
    def evaluations(self) -> int:
        """Network evaluations of one trajectory, for cost estimates."""
        if self.config.teacher == "exact":
            return EXACT_EVALUATIONS
        return sum(len(ask.points) for step in plan(self._rule(), self.fine_sigmas()) for ask in step)

    def _rule(self) -> Rule:
        return most_accurate(self.config.teacher)

    def _probe(self, seeds: list[int]) -> Tensor:
        """One evaluation of each of these samples: what proves that a file is of this network and these conditions."""
        denoiser: Denoiser = self.model.for_seeds(seeds)
        middle = (self.sigmas[0] * self.sigmas[-1]).sqrt()
        with torch.no_grad():
            x = self.noise(seeds)
            return denoiser(x * middle.to(x.dtype), middle.to(x.device)).cpu()

    def _holds(self, path: Path, seeds: list[int], probe: Tensor) -> bool:
        """Whether a file is of this network and these conditions.

        Its name says so where the model is transparent; a few evaluations of the first file that is read prove what no
        fingerprint holds, such as the strength of an adapter. Of any other model all samples of all files are proven.
        """
        if path in self._proven:
            return True
        if any(self._proven.values()) and conditions_digest(self.model, seeds):
            return True
        now = self._probe(seeds[: len(probe)])
        if probe.shape == now.shape and torch.allclose(probe.double(), now.double(), rtol=1e-3, atol=1e-3):
            self._proven[path] = True
            return True
        return False

    def _read(self, path: Path, seeds: list[int]) -> Tensor | None:
        """The cached states, mapped and not read until they are used; None where none are whole and of this model."""
        if not path.exists():
            return None
        try:
            with safe_open(require_regular(path, ValueError, MAX_BLOCK), framework="pt") as file:
                states, probe = file.get_tensor("states"), file.get_tensor("probe")
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("teacher cache %s is unreadable (%s): solving it again", path, error)
            return None
        if not self._holds(path, seeds, probe):
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
        proof = seeds[:PROOF] if conditions_digest(self.model, seeds) else seeds
        write_atomically(path, save({"states": states, "probe": self._probe(proof)}))
        self._proven[path] = False
        return states
