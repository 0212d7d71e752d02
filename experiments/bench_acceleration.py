"""Policies that leave out network calls, beside static ones of equal mean cost: `two-kinds`, `digits`, `shapes`,
`shapes-32`.

    python -m epd.experiments.bench_acceleration --only shapes,both,20,0     # MODEL,HEADS,CALLS,SEED; all decays
    python -m epd.experiments.bench_acceleration                             # what is missing: up to an hour a cell
    python -m epd.experiments.bench_acceleration --print
    python -m epd.experiments.bench_acceleration --draw                      # who computes when, prompt by prompt

A cell is a policy that is learned at one decay, from one seed, with both heads of steps or one of them (`tpdm`: the
step head with leave-one-out; `judged`: both, beside a discriminator; on `shapes-32` also `sparse`, attention alone, and
`three`), and measured on fresh noise. `two-kinds`, a world whose samples differ on purpose, and `digits` are learned by
closeness to the converged end points, the others by their verifier, from prompts of one and of two things. Beside it,
at its mean number of calls, between the two whole numbers of steps next to it: fewer plain Euler steps; the one mask of
the same grid that computes the steps that the policy computes most often; and the schedule of GITS, dynamic programming
over a teacher's trajectories; and how many calls each of them needs to be as good as the policy. `table`: a learned
table on the same samples, of another benchmark or learned here. Other rules, which cost nothing, are in the results of
`epd compare`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..accelerators.heads_file import load_heads
from ..accelerators.rapid3 import POLICY
from ..accelerators.sparsity import attention_share
from ..denoisers.protocol import Model
from ..distill.config import DistillConfig
from ..distill.gits import gits_of
from ..distill.learn import distill
from ..formats.files import write_atomically
from ..rl.acceleration_config import AccelerationConfig
from ..rl.learn import refine_acceleration
from ..runs.environment import environment
from ..solvers.registry import Ends
from ..solvers.table import Table
from . import acceleration_results, learned_results
from .acceleration_pictures import draw_decisions
from .acceleration_worlds import HERE, JUDGES, WORLDS, learning
from .bench_learned import read, table_in
from .cells_command import cells_command, chosen

RESULTS = Path(__file__).resolve().parent / "results" / "acceleration"
SEEDS, DECAYS, ABLATED = (0, 1, 2), (0.9, 0.97, 0.8), 0.9
HEADS: dict[str, dict[str, Any]] = {
    "both": {}, "step": {"heads": ("step",)}, "cache": {"heads": ("cache",)},
    "tpdm": {"heads": ("step",), "baseline": "rloo"}, "judged": {"discriminator": 1.0},
}  # fmt: skip
# Where attention is a share of a call that is worth leaving out.
SPARSE: dict[str, dict[str, Any]] = {"sparse": {"heads": ("sparse",)}, "three": {"heads": ("step", "cache", "sparse")}}
TABLE = "table"
LEARNING: dict[str, Any] = {"steps": 60, "held_out": 128, "lr": 3e-3, "tolerance": 1e-3, "evaluate_every": 20}
TEACHER: dict[str, int] = {"samples": 64, "fine": 60}  # of GITS
Static = Callable[[int], Mapping[str, float]]  # steps -> what a solver of so many gives


@dataclass(frozen=True)
class Job:
    """A cell; `calls` are those of the plain solver, or of a learned table, which has no decay."""

    model: str
    heads: str
    calls: int
    seed: int
    decay: float

    @property
    def name(self) -> str:
        """Of its run's folder."""
        return f"{self.model}-{self.heads}-{self.calls}-{self.decay:g}-{self.seed}"

    def path(self, results: Path) -> Path:
        """Its file in the folder of all results."""
        return results / self.model / f"{self.name.removeprefix(f'{self.model}-')}.json"

    def config(self) -> AccelerationConfig:
        """Of its run."""
        world = WORLDS[self.model]
        own = {"schedule": world.schedule, "grid": self.calls, "seed": self.seed, "decay": self.decay}
        heads = (HEADS | SPARSE)[self.heads]
        return AccelerationConfig.model_validate({**LEARNING, **world.learning, **heads, **own})


def jobs(filters: Sequence[str] = ()) -> list[Job]:
    """The cells that fit, see `chosen`; those of the ablation at one decay alone.

    Raises:
        ValueError: for a filter that no cell fits.
    """
    every = [
        Job(name, heads, world.grid, seed, decay)
        for name, world in WORLDS.items() for seed in SEEDS for decay in DECAYS
        for heads in (*HEADS, *(SPARSE if "block" in world.learning else ()))
        if heads == "both" or decay == ABLATED
    ]  # fmt: skip
    every += [Job(name, TABLE, calls, 0, 1.0) for name, world in WORLDS.items() for calls in world.tables]
    return chosen(every, filters, "MODEL,HEADS,CALLS,SEED")


def run(job: Job, results: Path, work: Path) -> None:
    """Makes and measures a cell that is not there; what was learned of it before a kill is gone on from."""
    path = job.path(results)
    if not path.exists():
        made = table_cell(job, work) if job.heads == TABLE else policy_cell(job, work)
        content = {"job": asdict(job), **made, "environment": environment()}
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def table_cell(job: Job, work: Path) -> dict[str, Any]:
    """A learned table on the samples of the policies."""
    source, judge = WORLDS[job.model].tables[job.calls], JUDGES[job.model]()
    table = learned_here(job, work) if source == HERE else table_in(read(RESULTS.parent / source))
    told = judge.told(judge.solved(torch.tensor(table.sigmas), table.rule()))
    return {"source": source, "digest": table.digest, "calls": table.depth, "table": told}


def learned_here(job: Job, work: Path) -> Table:
    """A table of as many calls of a world that no other benchmark has."""
    config, folder = DistillConfig(calls=job.calls, points=1, seed=job.seed), work / job.name
    return distill(learning(job.model)[0], config, folder, resume=(folder / "checkpoint.safetensors").exists())


def policy_cell(job: Job, work: Path) -> dict[str, Any]:
    """A policy, learned and measured."""
    world, (model, told) = WORLDS[job.model], learning(job.model)
    config, folder = job.config(), work / job.name
    resume = (folder / "checkpoint.safetensors").exists()
    watched = {name: name for name in world.watched}
    features = world.features if config.discriminator else None
    refine_acceleration(model, world.reward, config, folder, resume=resume, watched=watched, features=features, **told)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {"config": config.model_dump(mode="json"), "report": report, **measured(job.model, folder, config)}


def measured(name: str, folder: Path, config: AccelerationConfig) -> dict[str, Any]:
    """A world's policy on fresh samples, beside static solvers of equal mean cost and equally good ones."""
    judge, score = JUDGES[name](), WORLDS[name].score
    grid, levels = config.grid, judge.sigmas(config.grid)
    trips = judge.travelled(load_heads(folder / POLICY)[0], config)
    spent = torch.cat([trip.calls for trip in trips])
    computed = torch.cat([trip.computed for trip in trips], 1)
    often, calls = computed.double().mean(1), float(spent.mean())
    gits = gits_of(judge.taught, Ends.of(judge.taught), samples=TEACHER["samples"], fine=TEACHER["fine"])

    def mask(steps: int) -> Tensor:
        chosen = often.sort(descending=True, stable=True).indices[:steps].sort().values
        return levels[[*chosen.tolist(), grid]]

    def told(schedule: Callable[[int], Tensor]) -> Static:
        return functools.cache(lambda steps: judge.told(judge.solved(schedule(steps))))

    static = {"fewer plain steps": told(judge.sigmas), "one mask": told(mask), "GITS": told(gits.schedule)}
    policy = judge.told([trip.rollout for trip in trips])
    kinds = sorted(set(judge.kinds))
    by_kind = {kind: [i for i, own in enumerate(judge.kinds) if own == kind] for kind in kinds}
    return {
        "calls": calls,
        "least": float(spent.min()),
        "most": float(spent.max()),
        "calls by kind": {kind: float(spent[rows].mean()) for kind, rows in by_kind.items()},
        "computed in each step": often.tolist(),
        "attention": attention_of(judge.task.model),
        "policy": policy,
        "plain": judge.told(judge.solved(levels)),
        "beside": {name: between(one, calls, grid) for name, one in static.items()},
        "as good": {name: needed(one, calls, grid, score, policy) for name, one in static.items()},
    }


def attention_of(model: Model) -> float:
    """The share of attention's products in those of a call."""
    x, level = torch.zeros(1, *model.shape), torch.tensor(model.sigma_max).double()
    with torch.no_grad():
        return attention_share(lambda: model.for_seeds([0])(x, level))


def between(told: Static, calls: float, most: int) -> dict[str, float]:
    """What a static solver gives at a number of calls that is not whole: between the two next to it."""
    low = min(max(1, math.floor(calls)), most)
    one, other = told(low), told(min(low + 1, most))
    return {name: one[name] + (calls - low) * (other[name] - one[name]) for name in one}


def needed(
    told: Static, calls: float, most: int, score: Callable[[Mapping[str, float]], float], policy: Mapping[str, float]
) -> float | None:
    """The calls from which a static solver scores as a policy of so many does, between two whole numbers.

    None where all `most` are too few.
    """
    goal, n = score(policy), min(max(1, math.floor(calls)), most)
    while n < most and score(told(n)) < goal:
        n += 1
    while n > 1 and score(told(n - 1)) >= goal:
        n -= 1
    here = score(told(n))
    if here < goal:
        return None
    return 1.0 if n == 1 else n - (here - goal) / (here - score(told(n - 1)))


def printed(results: Path) -> str:
    """The page's tables of what is there."""
    contents = learned_results.contents(results)
    return "\n\n".join(f"{name}\n\n{render(contents)}" for name, render in acceleration_results.RENDERERS.items())


def drawn(results: Path, docs: Path) -> Iterator[Path]:
    """Writes who computes when, of policies with both heads, at the decay of the ablation, seed 0."""
    for world, name in (("two-kinds", "acceleration_two_kinds.png"), ("shapes", "acceleration_decisions.png")):
        path = Job(world, "both", WORLDS[world].grid, SEEDS[0], ABLATED).path(results)
        if path.exists():
            yield draw_decisions(read(path)["report"], docs / name)


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    return cells_command(argv, __doc__, "MODEL,HEADS,CALLS,SEED", RESULTS, jobs, run, printed, drawn)


if __name__ == "__main__":
    raise SystemExit(main())
