"""The best learned solver within a budget on this machine: measure structures, learn those that pay, keep the best."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ..denoisers.checks import checked
from ..denoisers.protocol import Model
from ..distill.config import DistillConfig
from ..distill.families import FAMILIES
from ..distill.initial import initial_table
from ..distill.parameters import Parameters
from ..distill.run import run_distill
from ..formats.files import write_atomically
from ..runs.environment import environment
from ..runs.folder import Folder
from ..solvers.parallel import parallel
from ..solvers.registry import MULTISTEP, USUAL, Ends, RuleSettings, make_rule, make_sigmas
from ..solvers.table import Table
from ..solvers.walk import Rule
from .compare import compare
from .comparison import Comparison
from .judges import judges_of
from .latency import latencies
from .tune_config import TuneConfig
from .tuned import WITHIN, Tried, Tuned, evidence

log = logging.getLogger("epd")
PAYS = 1.25  # times the latency of one point a call: what a second one may cost where calls are what is counted


def tune(model: Model, config: TuneConfig, out: Path | str, conditions: Mapping[str, object] | None = None) -> Tuned:
    """The best learned solver within a budget, with the evidence, in `out`: solver.json, tune.json, tune.md.

    What a request costs is measured here, structure by structure (C sequential calls of K points each); a structure is
    learned where no other has at least as many calls and as many evaluations in the same budget, and that of the fewest
    points, which is learned fastest. Learned tables of fewer calls and points are starts of a larger one. The choice is
    made on held-out noise; then the table stands beside every hand-made solver at the calls that fit, on fresh noise.
    The same call again goes on where it was stopped.

    Args:
        model: as of `distill`.
        out: folder; each learned structure is a run in it.
        conditions: what else the model was asked for, ready for JSON; a result is not continued with others.

    Raises:
        ValueError: where not even the cheapest structure fits the budget, naming what it takes, or none is good enough,
            or `out` holds another result.
    """
    search = _Search(checked(model, getattr(torch, config.dtype)), config, Path(out), dict(conditions or {}))
    best = search.best()
    table, latency = search.tables[best.name], search.latency_of(best)
    tuned = Tuned(table, latency, tuple(search.tried), *search.judged(table, max(latency, best.latency_ms)))
    content = {
        "budget": config.model_dump(mode="json"), "latency_ms": latency, "handmade_calls": tuned.handmade_calls,
        "verdict": tuned.verdict(), "tried": [asdict(t) for t in tuned.tried], "cell": asdict(tuned.cell),
        "rival": asdict(tuned.rival), "digest": table.digest, "environment": environment(),
    }  # fmt: skip
    table.save(search.out / "solver.json")
    write_atomically(search.out / "tune.json", (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(search.out / "tune.md", (evidence(tuned) + "\n").encode())
    return tuned


@dataclass
class _Search:
    """What has been timed and learned so far."""

    model: Model
    config: TuneConfig
    out: Path
    conditions: dict[str, object]
    tried: list[Tried] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    learned: list[Tried] = field(default_factory=list)

    def best(self) -> Tried:
        """Learns what may be the best structure, and finds it."""
        structures = self._structures()
        if self.config.quality is not None:
            return self._fastest(structures, self.config.quality)
        learn = undominated(structures)
        learn += [t for t in structures if t.points == min(s.points for s in structures) and t not in learn]
        self.tried = [self._learned(t, 1 / len(learn)) if t in learn else t for t in structures]
        return min((t for t in self.tried if t.rmse is not None), key=lambda t: t.rmse or 0.0)

    def _fastest(self, structures: Sequence[Tried], quality: float) -> Tried:
        """Learns structures, the fastest first, until one is good enough."""
        for structure in structures:
            if any(beats(other, structure) for other in self.tried):  # as many calls and evaluations were not enough
                continue
            found = self._learned(structure, 1 / self.config.most_calls)
            self.tried.append(found)
            log.info("%s: RMSE %.4g in %.4g ms", found.name, found.rmse, found.latency_ms)
            if found.rmse is not None and found.rmse <= quality:
                return found
        nearest = min(self.tried, key=lambda t: t.rmse or math.inf)
        raise ValueError(
            f"quality = {quality:g} was not reached: {nearest.name} came to {nearest.rmse:.4g}; give a larger one, "
            f"more than most_calls = {self.config.most_calls}, or more minutes"
        )

    def _structures(self) -> list[Tried]:
        """Those that fit, timed; of a search that was stopped as they were then."""
        path = self.out / "structures.json"
        of = {"budget": self.config.model_dump(mode="json"), "model": self.model.name, "device": str(self.model.device)}
        of["conditions"] = self.conditions
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("of") != json.loads(json.dumps(of)):
                raise ValueError(f"{self.out} holds the result of another budget or model: choose another --out")
            return [Tried(**row) for row in content["structures"]]
        found = list(self._fitting())
        self.out.mkdir(parents=True, exist_ok=True)
        content = {"of": of, "structures": [asdict(t) for t in found]}
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
        return found

    def _fitting(self) -> Iterator[Tried]:
        """The structures that fit the budget, of each count of points that with the most calls; for a quality all, the
        fastest first.
        """
        points, config = sorted(self.config.points), self.config
        if config.quality is not None:
            every = self._timed([(calls, k) for k in points for calls in range(2, config.most_calls + 1)])
            yield from sorted(every, key=lambda t: t.latency_ms)
        elif config.calls is not None:
            tried = self._timed([(config.calls, k) for k in points])
            limit = PAYS * min(t.latency_ms for t in tried)
            yield from (t for t in tried if t.latency_ms <= limit or t.points == min(points))
        else:
            assert config.latency_ms is not None, "the config has one budget"
            yield from self._longest(self._timed([(2, k) for k in points]), config.latency_ms)

    def _longest(self, fewest: Sequence[Tried], limit: float) -> Iterator[Tried]:
        """For each count of points the most calls within the limit."""
        least = min(fewest, key=lambda t: t.latency_ms)
        if least.latency_ms > limit:
            raise ValueError(
                f"latency_ms = {limit:g}: 2 calls of {least.points} points take {least.latency_ms:.4g} ms here; give "
                "as much or more, a smaller request, or a faster device"
            )
        for best in fewest:
            bound = self.config.most_calls + 1
            while best.latency_ms <= limit and bound - best.calls > 1:
                guess = math.floor(best.calls * limit / best.latency_ms)
                (found,) = self._timed([(min(max(best.calls + 1, guess), bound - 1), best.points)])
                best, bound = (found, bound) if found.latency_ms <= limit else (best, found.calls)
            if best.latency_ms <= limit:
                yield best
            if best.calls == self.config.most_calls and best.points == min(self.config.points):
                log.warning(
                    "%d calls of %d points take %.4g ms here: more than most_calls = %d would fit, give a larger one",
                    best.calls, best.points, best.latency_ms, self.config.most_calls,
                )  # fmt: skip

    def _timed(self, wanted: Sequence[tuple[int, int]]) -> list[Tried]:
        """Structures (calls, points) with their latencies, as of learned tables, in which no weight is zero."""
        solvers = []
        for calls, k in wanted:
            config = self._config_of(calls, k).model_copy(update={"schedule": USUAL[self.model.path]})
            whole = Parameters.of(initial_table(config, self.model), FAMILIES[config.family].learn)
            coefficients = whole.coefficients(whole.start)
            solvers.append((parallel(coefficients), coefficients.sigmas))
        found = self._latencies(solvers)
        return [Tried(calls, k, ms) for (calls, k), ms in zip(wanted, found, strict=True)]

    def _latencies(self, solvers: Sequence[tuple[Rule, torch.Tensor]]) -> list[float]:
        return latencies(self.model, solvers, self.config.request, getattr(torch, self.config.dtype))

    def _config_of(self, calls: int, points: int) -> DistillConfig:
        return DistillConfig(
            family="dense", calls=calls, points=points, seed=self.config.seed, dtype=self.config.dtype
        )

    def _learned(self, structure: Tried, share: float) -> Tried:
        """The structure with its table learned in a run of its own, which goes on where it was stopped."""
        own = self._config_of(structure.calls, structure.points)
        own = own.model_copy(update={"minutes": share * self.config.minutes})
        folder = self.out / structure.name
        resume = Folder(folder, {}).checkpoint.exists()
        smaller = [self.tables[other.name] for other in undominated([t for t in self.learned if beats(structure, t)])]
        path = run_distill(self.model, own, folder, resume, conditions=self.conditions, smaller=smaller)
        assert path is not None, "only a dry run has no table"
        table = self.tables[structure.name] = Table.load(path)
        self.learned.append(structure)
        return replace(structure, rmse=float(table.provenance.metrics["validation_rmse"]))

    def latency_of(self, best: Tried) -> float:
        """Of the learned table, now; a machine that is busy for a moment gets another chance."""
        limit, solver = self.config.latency_ms or math.inf, of_table(self.tables[best.name])
        found = min(self._latencies([solver] * 3))
        if found > WITHIN * limit:
            log.warning(
                "the learned table takes %.4g ms now, its structure took %.4g when it was timed: is the machine busy?",
                found, best.latency_ms,
            )  # fmt: skip
        return found

    def judged(self, table: Table, latency: float) -> tuple[int, Comparison]:
        """How many calls hand-made solvers can make in this time, and all of them there beside the table."""
        dtype = getattr(torch, self.config.dtype)
        calls = self.config.calls or self._handmade_calls(latency)
        return calls, compare(
            self.model, {"tuned": table}, [calls], self.config.samples, dtype=dtype,
            alphas_cumprod=self.model.alphas_cumprod, keep=self.out / "cells", conditions=self.conditions,
            solvers=("hand-made",), **judges_of(self.model.name),
        )  # fmt: skip

    def _handmade_calls(self, latency: float) -> int:
        """How many sequential calls a hand-made multistep solver makes in this time here."""
        ends, name = Ends.of(self.model), USUAL[self.model.path]

        def taking(steps: int) -> float:
            rule = make_rule(MULTISTEP, RuleSettings(num_steps=steps))
            return self._latencies([(rule, make_sigmas(name, steps, ends))])[0]

        steps = max(1, round(4 * latency / taking(4)))
        while steps > 1 and taking(steps) > WITHIN * latency:
            steps -= 1
        return steps


def of_table(table: Table) -> tuple[Rule, torch.Tensor]:
    """A table as a solver that can be timed."""
    return table.rule(), torch.tensor(table.sigmas)


def beats(a: Tried, b: Tried) -> bool:
    """Whether a structure has at least as many calls and evaluations as another, and more of one of them."""
    ours, theirs = ((t.calls, t.calls * t.points) for t in (a, b))
    return ours != theirs and all(x >= y for x, y in zip(ours, theirs, strict=True))


def undominated(tried: Sequence[Tried]) -> list[Tried]:
    """Those that no other beats."""
    return [t for t in tried if not any(beats(other, t) for other in tried)]
