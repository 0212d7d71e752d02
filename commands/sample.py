"""`epd sample`: any number of samples, batch by batch, each one its seed."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..formats.files import write_atomically
from ..runs.progress import bar
from ..solvers import rules, schedules
from ..solvers.solve import solve
from ..solvers.walk import Rule
from .inputs import fits, load_table, model_options
from .models import labels_of, load_model
from .options import Sample, UsageError

log = logging.getLogger("epd")

# Name -> sequential calls of a step, and the rule; the only place where rules have names.
RULES: dict[str, tuple[int, Callable[[int, bool], Rule]]] = {
    "euler": (1, lambda n, afs: rules.euler(afs)),
    "heun": (2, lambda n, afs: rules.heun(afs)),
    "dpm2": (2, lambda n, afs: rules.dpm2(afs=afs)),
    "ipndm1": (1, lambda n, afs: rules.ipndm(1, afs=afs)),
    "ipndm2": (1, lambda n, afs: rules.ipndm(2, afs=afs)),
    "ipndm3": (1, lambda n, afs: rules.ipndm(3, afs=afs)),
    "ipndm4": (1, lambda n, afs: rules.ipndm(4, afs=afs)),
    "dpmpp1": (1, lambda n, afs: rules.dpmpp(1, num_steps=n, afs=afs)),
    "dpmpp2": (1, lambda n, afs: rules.dpmpp(2, num_steps=n, afs=afs)),
    "dpmpp3": (1, lambda n, afs: rules.dpmpp(3, num_steps=n, afs=afs)),
}


@dataclass(frozen=True)
class Solver:
    """What to drive: a rule with its noise levels.

    Args:
        depth: sequential calls; `nfe`: evaluations of one sample.
    """

    name: str
    rule: Rule
    sigmas: list[float]
    depth: int
    nfe: int
    digest: str = ""


def parse_seeds(text: str) -> list[int]:
    """Seeds of `0-99`, `1,2,3` or both mixed.

    Raises:
        UsageError: naming the part that is none.
    """
    out: list[int] = []
    for part in text.replace(" ", "").split(","):
        ends = part.split("-")
        if len(ends) > 2 or not all(end.isdecimal() and len(end) < 19 for end in ends):
            raise UsageError(f"seeds = {text!r}: {part!r} is no seed nor range; write 0-99, or 1,2,3")
        first, last = int(ends[0]), int(ends[-1])
        if last < first or last - first >= 10**8:
            raise UsageError(f"seeds = {text!r}: {part!r} must rise, by less than 100 million")
        out += range(first, last + 1)
    return out


def wanted_seeds(options: Sample) -> Sequence[int]:
    """The seeds of a run."""
    if options.seeds is None:
        return range(options.count or 64)
    seeds = parse_seeds(options.seeds)
    if options.count is not None and options.count != len(seeds):
        found = f"seeds = {options.seeds!r} are {len(seeds)}"
        raise UsageError(f"count = {options.count}, but {found}: give one of the two")
    return seeds


def solver_of(options: Sample, model: Model) -> Solver:
    """The learned or hand-made solver that is asked for.

    Raises:
        UsageError: for none or both, or a count of calls that the rule cannot make.
    """
    if (options.table is None) == (options.rule is None):
        raise UsageError("give exactly one of --table FILE and --rule NAME")
    if options.table is not None:
        table = load_table(options.table)
        fits(table, model, options.table)
        sigmas = table.sigmas.tolist()
        return Solver(options.table, table.rule(model.device), sigmas, table.depth, table.nfe, table.digest)
    per_step, make = RULES[str(options.rule)]
    steps, rest = divmod(options.calls + options.afs, per_step)
    if rest or steps < 1:
        fitting = "even" if not options.afs else "odd"
        raise UsageError(f"calls = {options.calls}: {options.rule} makes 2 a step, so give an {fitting} number")
    sigmas = schedule_of(options, model, steps).tolist()
    return Solver(str(options.rule), make(steps, options.afs), sigmas, options.calls, options.calls)


def schedule_of(options: Sample, model: Model, steps: int) -> Tensor:
    """The noise levels of a hand-made rule."""
    name = options.schedule or ("polynomial" if model.path == "ve" else "flow")
    if name == "flow":
        if model.path != "flow":
            raise UsageError(f"schedule = 'flow': {model.name} is on a {model.path} path; choose another")
        return schedules.flow_shift(steps, options.shift, sigma_min=model.sigma_min, sigma_max=model.sigma_max)
    if name == "polynomial":
        return schedules.polynomial(steps, model.sigma_min, model.sigma_max, options.rho)
    make = schedules.logsnr if name == "logsnr" else schedules.time_uniform
    return make(steps, model.sigma_min, model.sigma_max)


def pictures(model: Model, x: Tensor) -> np.ndarray:
    """(B, H, W, C) uint8."""
    return (model.decode(x).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class Archive:
    """Rows written one batch at a time to disk, and at the end to one .npz, without a second copy in memory."""

    def __init__(self, path: Path, count: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.count = path, count
        self.folder = tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent)
        self.arrays: dict[str, np.memmap] = {}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *problem: object) -> None:
        self.arrays.clear()
        self.folder.cleanup()

    def put(self, name: str, first: int, rows: np.ndarray) -> None:
        """Rows `first`, `first` + 1, ... of an array."""
        if name not in self.arrays:
            file, shape = str(Path(self.folder.name) / f"{name}.npy"), (self.count, *rows.shape[1:])
            self.arrays[name] = np.lib.format.open_memmap(file, "w+", rows.dtype, shape)
        self.arrays[name][first : first + len(rows)] = rows

    def save(self, small: dict[str, np.ndarray]) -> None:
        """Puts the .npz in place."""
        part = Path(self.folder.name) / "whole.npz"
        with open(part, "wb") as file:
            np.savez(file, **self.arrays, **small)  # pyright: ignore[reportArgumentType] - streams memory maps
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path)


def draw(
    model: Model,
    solver: Solver,
    seeds: Sequence[int],
    batch: int,
    dtype: torch.dtype,
    take: Callable[[int, Tensor], None],
) -> float:
    """Solves for every seed, batch by batch, and hands (first row, states) to `take`; seconds spent in the solver."""
    spent = 0.0
    with torch.no_grad(), bar(len(seeds), "sample", "sample") as shown:
        for first in range(0, len(seeds), batch):
            part = list(seeds[first : first + batch])
            noise = unit_noise(part, model.shape, dtype, model.device)
            began = time.perf_counter()
            x = solve(solver.rule, model.for_seeds(part), noise, solver.sigmas)
            if x.is_cuda:
                torch.cuda.synchronize()
            spent += time.perf_counter() - began
            take(first, x)
            shown.update(len(part))
    return spent


def sample(options: Sample) -> int:
    """Draws what is asked for into `options.out`."""
    settings, seeds = model_options(options), wanted_seeds(options)
    model = load_model(options.model, settings)
    solver = solver_of(options, model)
    log.info("%d samples of %s: %s, %d sequential calls, %d evaluations", len(seeds), model.name, solver.name,
             solver.depth, solver.nfe)  # fmt: skip
    from ..evaluation.plots import save_grid
    from ..runs.environment import environment

    small = {"seeds": np.asarray(seeds, np.int64)}
    labels = labels_of(options.model, settings, list(seeds))
    if labels is not None:
        small["labels"] = np.asarray(labels, np.int64)
    with Archive(options.out / "samples.npz", len(seeds)) as archive:

        def take(first: int, x: Tensor) -> None:
            archive.put("samples", first, pictures(model, x))
            if options.states:
                archive.put("states", first, x.cpu().numpy())

        seconds = draw(model, solver, seeds, options.batch, getattr(torch, options.dtype), take)
        shown = torch.from_numpy(np.array(archive.arrays["samples"][: options.grid])).permute(0, 3, 1, 2) / 255
        archive.save(small)
    if len(shown):
        save_grid(shown, options.out / "grid.png", options.columns)
    record = {
        "options": options.model_dump(mode="json", exclude={"config"}),
        "solver": {"name": solver.name, "sigmas": solver.sigmas, "calls": solver.depth, "evaluations": solver.nfe},
        "table_digest": solver.digest,
        "seconds_in_solver": round(seconds, 3),
        "environment": environment(),
    }
    write_atomically(options.out / "samples.json", (json.dumps(record, indent=1) + "\n").encode())
    log.info("%s", ", ".join(str(options.out / n) for n in ("samples.npz", "grid.png", "samples.json")))
    return 0
