"""`epd sample`: any number of samples, on any number of processes, each one its seed."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..denoisers.checks import checked
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..denoisers.rows import samples_together
from ..evaluation.compare import ends_identity
from ..evaluation.drawing import network_probe
from ..evaluation.shards import SHARD, Shards
from ..formats.files import write_atomically
from ..formats.npz import write_npz
from ..pipelines.find import find_table
from ..runs.processes import Workers
from ..solvers.answers import MakeAnswer
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


def pictures(model: Model, x: Tensor) -> Tensor | None:
    """(B, H, W, C) uint8 of finished states, grey or in colour; None where they stand for something else."""
    decoded = model.decode(x)
    if decoded.ndim != 4 or decoded.shape[1] not in (1, 3):
        return None
    return (decoded.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


@dataclass
class Draw:
    """Samples by their number.

    Args:
        states: keep the finished states beside the pictures; what is no picture is always kept so.
        seconds: spent in the solver.
    """

    model: Model
    solver: Solver
    seeds: Sequence[int]
    dtype: torch.dtype
    answer: MakeAnswer
    states: bool
    seconds: float = field(default=0.0, init=False)

    def rows(self, part: range) -> dict[str, Tensor]:
        """What is kept of samples number `part`, solved together: pictures (B, H, W, C), states (B, *S), or both."""
        seeds = [self.seeds[i] for i in part]
        noise = unit_noise(seeds, self.model.shape, self.dtype, self.model.device)
        began = time.perf_counter()
        with torch.no_grad():
            x = solve(self.solver.rule, self.model.for_seeds(seeds), noise, self.solver.sigmas, self.answer)
        if x.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        shown = pictures(self.model, x)
        found = {} if shown is None else {"samples": shown}
        return {**found, "states": x} if shown is None or self.states else found


def sample(options: Sample) -> int:
    """Draws the samples and writes them, a grid of them and a record of the run to `options.out`."""
    settings, seeds = model_options(options), seeds_of(options)
    workers, dtype = Workers.of_accelerate(), getattr(torch, options.dtype)  # each process takes a device of its own

    def prepared() -> tuple[Draw, Shards]:
        model = checked(load_model(options.model, settings), dtype, options.rows, decode=True)
        solver = solver_of(options, model)
        identity = {
            **ends_identity(model, dtype), "conditions": settings.conditions(), "seeds": options.seeds,
            "solver": [solver.name, solver.digest, solver.sigmas], "states": options.states,
        }  # fmt: skip
        shards = Shards.of(options.out / "parts", identity, len(seeds))
        if workers.rank == 0:
            shards.begin(identity, network_probe(model, seeds[0], dtype))
        return Draw(model, solver, seeds, dtype, answer_named(options.answer), options.states), shards

    draw, shards = workers.together(prepared)
    model, solver = draw.model, draw.solver
    log.info("%d samples of %s: %s, %d sequential calls, %d evaluations", len(seeds), model.name, solver.name,
             solver.depth, solver.nfe)  # fmt: skip
    shards.fill(draw.rows, workers, "samples", options.batch or samples_together(model.shape, SHARD))
    workers.together(lambda: None if workers.rank else written(options, draw, shards, workers.count))
    workers.end()
    return 0


def written(options: Sample, draw: Draw, shards: Shards, processes: int) -> None:
    """Puts the parts together, and a grid and the record beside them."""
    from ..runs.environment import environment

    arrays: dict[str, Iterable[np.ndarray]] = {
        name: (part.numpy() for part in shards.stream(name)) for name in shards.names()
    }
    arrays["seeds"] = [np.asarray(draw.seeds, np.int64)]
    labels = labels_of(options.model, model_options(options), list(draw.seeds))
    if labels is not None:
        arrays["labels"] = [np.asarray(labels, np.int64)]
    write_npz(options.out / "samples.npz", len(draw.seeds), arrays)
    names = ["samples.npz", *grid_file(options, shards), "samples.json"]
    solver = draw.solver
    record = {
        "options": options.model_dump(mode="json", exclude={"config"}),
        "solver": {"name": solver.name, "sigmas": solver.sigmas, "calls": solver.depth, "evaluations": solver.nfe},
        "table_digest": solver.digest,
        "seconds_in_solver": round(draw.seconds, 3),  # of the first process, since it was last started
        "processes": processes,
        "environment": environment(),
    }
    write_atomically(options.out / "samples.json", (json.dumps(record, indent=1) + "\n").encode())
    shutil.rmtree(shards.folder)
    if not any(shards.folder.parent.iterdir()):  # nothing else was stopped here
        shards.folder.parent.rmdir()
    log.info("%s", ", ".join(str(options.out / name) for name in names))


def grid_file(options: Sample, shards: Shards) -> list[str]:
    """The name of the grid of the first pictures, drawn; an older run's is removed where there is nothing to draw."""
    from ..evaluation.plots import save_grid

    path, shown = options.out / "grid.png", list[Tensor]()
    if options.grid and "samples" in shards.names():
        for part in shards.stream("samples"):
            shown.append(part)
            if sum(map(len, shown)) >= options.grid:
                break
    if not shown:
        path.unlink(missing_ok=True)
        return []
    save_grid(torch.cat(shown)[: options.grid].permute(0, 3, 1, 2) / 255, path, options.columns)
    return [path.name]
