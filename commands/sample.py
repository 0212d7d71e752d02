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

from ..denoisers.checks import checked
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..denoisers.rows import samples_together
from ..formats.files import write_atomically
from ..pipelines.find import find_table
from ..runs.progress import bar
from ..solvers.answers import MakeAnswer, batched
from ..solvers.auto import answer_named
from ..solvers.registry import NUMBERED, RULES, SCHEDULES, USUAL, Ends, RuleSettings, make_rule, make_sigmas
from ..solvers.solve import solve
from ..solvers.walk import Rule
from .inputs import fits, model_options
from .models import labels_of, load_model
from .options import Sample, SolverArguments, UsageError

log = logging.getLogger("epd")

@dataclass(frozen=True)
class Solver:
    """A solver by name: its rule, its noise levels and what it costs.

    Args:
        sigmas: N + 1, decreasing.
        depth: sequential network calls.
        nfe: network evaluations of one sample.
        digest: of a learned table; empty for a hand-made rule.
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
        UsageError: naming the part that is neither a seed nor a range.
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


def seeds_of(options: Sample) -> Sequence[int]:
    """The seeds of the samples: those of --seeds, or 0, 1, 2, ... up to --count.

    Raises:
        UsageError: where both are given and differ in number.
    """
    if options.seeds is None:
        return range(options.count or 64)
    seeds = parse_seeds(options.seeds)
    if options.count is not None and options.count != len(seeds):
        listed = f"seeds = {options.seeds!r} are {len(seeds)}"
        raise UsageError(f"count = {options.count}, but {listed}: give one of the two")
    return seeds


def solver_of(options: SolverArguments, model: Model) -> Solver:
    """The solver of --table or --rule.

    Raises:
        UsageError: for neither or both of them, or a count of calls that the rule cannot make.
    """
    if (options.table is None) == (options.rule is None):
        raise UsageError("give exactly one of --table FILE and --rule NAME")
    if options.table is not None:
        table = find_table(options.table)
        fits(table, model, options.table)
        sigmas = table.sigmas.tolist()
        return Solver(options.table, table.rule(model.device), sigmas, table.depth, table.nfe, table.digest)
    name = str(options.rule)
    per_step = RULES[NUMBERED[name][0]].step_calls
    steps, rest = divmod(options.calls + options.afs, per_step)
    if rest or steps < 1:
        fitting = "even" if not options.afs else "odd"
        raise UsageError(f"calls = {options.calls}: {name} makes 2 a step, so give an {fitting} number")
    rule = make_rule(name, RuleSettings(num_steps=steps, afs=options.afs))
    return Solver(name, rule, sigmas_of(options, model, steps).tolist(), options.calls, options.calls)


def sigmas_of(options: SolverArguments, model: Model, steps: int) -> Tensor:
    """The noise levels of a hand-made rule, from the model's first to its last.

    Raises:
        UsageError: for a schedule that the model cannot have.
    """
    name = options.schedule or USUAL[model.path]
    number = {"rho": options.rho, "shift": options.shift}.get(SCHEDULES[name].shape or "")
    try:
        return make_sigmas(name, steps, Ends.of(model), number)
    except ValueError as error:
        raise UsageError(str(error)) from error


def pictures(model: Model, x: Tensor) -> np.ndarray | None:
    """(B, H, W, C) uint8 of finished states, grey or in colour; None where they stand for something else."""
    decoded = model.decode(x)
    if decoded.ndim != 4 or decoded.shape[1] not in (1, 3):
        return None
    return (decoded.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


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
    answer: MakeAnswer = batched,
) -> float:
    """Solves for every seed, batch by batch, and hands (first row, states) to `take`; seconds spent in the solver."""
    spent = 0.0
    with torch.no_grad(), bar(len(seeds), "sample", "sample") as shown:
        for first in range(0, len(seeds), batch):
            part = list(seeds[first : first + batch])
            noise = unit_noise(part, model.shape, dtype, model.device)
            began = time.perf_counter()
            x = solve(solver.rule, model.for_seeds(part), noise, solver.sigmas, answer)
            if x.is_cuda:
                torch.cuda.synchronize()
            spent += time.perf_counter() - began
            take(first, x)
            shown.update(len(part))
    return spent


def sample(options: Sample) -> int:
    """Draws the samples and writes them, a grid of them and a record of the run to `options.out`."""
    settings, seeds = model_options(options), seeds_of(options)
    model = checked(load_model(options.model, settings), getattr(torch, options.dtype), options.rows, decode=True)
    solver = solver_of(options, model)
    log.info("%d samples of %s: %s, %d sequential calls, %d evaluations", len(seeds), model.name, solver.name,
             solver.depth, solver.nfe)  # fmt: skip
    from ..runs.environment import environment

    small = {"seeds": np.asarray(seeds, np.int64)}
    labels = labels_of(options.model, settings, list(seeds))
    if labels is not None:
        small["labels"] = np.asarray(labels, np.int64)
    with Archive(options.out / "samples.npz", len(seeds)) as archive:
        keep = keeper(options, model, archive)
        batch = options.batch or samples_together(model.shape, 256)
        answer = answer_named(options.answer)
        seconds = draw(model, solver, seeds, batch, getattr(torch, options.dtype), keep, answer)
        first = np.array(archive.arrays["samples"][: options.grid]) if "samples" in archive.arrays else np.zeros(0)
        archive.save(small)
    written = ["samples.npz", *grid_file(options, first), "samples.json"]
    record = {
        "options": options.model_dump(mode="json", exclude={"config"}),
        "solver": {"name": solver.name, "sigmas": solver.sigmas, "calls": solver.depth, "evaluations": solver.nfe},
        "table_digest": solver.digest,
        "seconds_in_solver": round(seconds, 3),
        "environment": environment(),
    }
    write_atomically(options.out / "samples.json", (json.dumps(record, indent=1) + "\n").encode())
    log.info("%s", ", ".join(str(options.out / name) for name in written))
    return 0


def keeper(options: Sample, model: Model, archive: Archive) -> Callable[[int, Tensor], None]:
    """A function that puts finished states into the archive: as 8-bit pictures where they are pictures, as states
    where they are not, or with --states.
    """

    def keep(first: int, x: Tensor) -> None:
        shown = pictures(model, x)
        if shown is not None:
            archive.put("samples", first, shown)
        if shown is None or options.states:
            archive.put("states", first, x.cpu().numpy())

    return keep


def grid_file(options: Sample, rows: np.ndarray) -> list[str]:
    """The name of the grid of these pictures, drawn; an older run's is removed where there is nothing to draw."""
    from ..evaluation.plots import save_grid

    path = options.out / "grid.png"
    if not len(rows):
        path.unlink(missing_ok=True)
        return []
    save_grid(torch.from_numpy(rows).permute(0, 3, 1, 2) / 255, path, options.columns)
    return [path.name]
