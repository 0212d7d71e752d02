"""What accelerators gain on the embedded network of digits, beside the plain solvers and learned tables of equal cost.

    python -m epd.experiments.bench_accelerators           # what is missing, or was measured on something else
    python -m epd.experiments.bench_accelerators --print   # the table of what is there

A row is a solver with or without an accelerator: how far its end points lie from the converged ones (RMSE, all on one
uniform log-SNR grid over the model's range; learned tables on their own sigmas), and what its network calls cost, in
whole forwards a sample. Costs are counted, not timed.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..accelerators.accelerate import accelerate, decelerate, measure
from ..accelerators.names import parse
from ..denoisers.digits import digits
from ..denoisers.networks import NetworkDenoiser
from ..denoisers.noise import unit_noise
from ..formats.files import write_atomically
from ..runs.environment import environment
from ..solvers import rules
from ..solvers.schedules import logsnr
from ..solvers.solve import solve
from ..solvers.walk import Rule
from .bench_learned import read, table_in, write
from .learned_results import FOLDER as LEARNED
from .markdown import MISSING, markdown_table, measured_in

RESULTS = Path(__file__).resolve().parent / "results" / "accelerators.json"
SEEDS, REFERENCE = 48, 120  # samples of the seeds 0, 1, ... and their classes; steps of DPM-Solver-2
RULES: dict[str, Any] = {
    "euler": rules.euler, "dpm2": rules.dpm2, "ipndm2": lambda: rules.ipndm(2), "ipndm3": lambda: rules.ipndm(3),
}  # fmt: skip
LEARNT = "learned"  # its steps are the calls of the table
FAN, DRAWS = "ras:ratio=0.5,where=fan", 3
log = logging.getLogger("epd")


@dataclass(frozen=True)
class Row:
    """A solver of so many steps, and an accelerator as the commands spell it."""

    solver: str
    steps: int
    accelerator: str = ""

    @property
    def key(self) -> str:
        """In the file."""
        return " ".join([self.solver, str(self.steps), self.accelerator]).strip()

    def method(self) -> tuple[Rule, Tensor | None]:
        """The rule, and the sigmas that it was learned with."""
        if self.solver != LEARNT:
            return RULES[self.solver](), None
        table = table_in(read(LEARNED / "digits" / f"dense-1-{self.steps}-0.json"))
        return table.rule(), torch.tensor(table.sigmas)


PLAIN = [
    *(Row("euler", n) for n in (8, 10, 14)), *(Row("dpm2", n) for n in (4, 5, 6, 8)), Row("ipndm2", 8),
    Row("ipndm2", 10), Row("ipndm3", 8), Row("ipndm3", 10), Row(LEARNT, 7), Row(LEARNT, 9),
]  # fmt: skip
REGIONS = [
    *(Row("dpm2", n, FAN) for n in (4, 5, 6, 8)),
    *(Row("dpm2", n, f"{FAN},score=random,seed={i}") for n in (5, 6) for i in range(DRAWS)),
    *(Row("dpm2", n, f"{FAN},score=norm") for n in (5, 6)),
    *(Row("dpm2", n, "ras:ratio=0.25,where=fan") for n in (5, 6)),
    *(Row("euler", n, "ras:ratio=0.5,warmup=2,gap=4") for n in (10, 14)),
    *(Row("euler", n, "ras:ratio=0.5,warmup=2,gap=4,score=random") for n in (10, 14)),
    Row(LEARNT, 9, "ras:ratio=0.5,warmup=2,gap=4"),
]
ROWS = (*PLAIN, *REGIONS)


class Judge:
    """Measures rows on the samples of these seeds, of their classes without guidance; of `digits`, or of `model`, whose
    converged end points are kept in a file, then.
    """

    def __init__(
        self, seeds: Sequence[int], reference: int = REFERENCE, model: NetworkDenoiser | None = None,
        kept: Path | None = None,
    ) -> None:  # fmt: skip
        self.model = digits() if model is None else model
        self._denoiser, self._noise = self.model.for_seeds(seeds), unit_noise(seeds, self.model.shape)
        if kept is not None and kept.exists():
            self._converged = load_file(kept)["ends"]
            return
        self._converged = self.solved(rules.dpm2(), self.grid(reference))
        if kept is not None:
            write_atomically(kept, save({"ends": self._converged}))

    def measured(self, row: Row) -> dict[str, Any]:
        """See `of`."""
        rule, sigmas = row.method()
        return self.of(rule, self.grid(row.steps) if sigmas is None else sigmas, row.accelerator)

    def of(self, rule: Rule, sigmas: Tensor, accelerator: str) -> dict[str, Any]:
        """Root mean square error of each sample, and the cost of one."""
        with accelerated(self.model, accelerator), measure(self.model, counts=False) as costs:
            made = self.solved(rule, sigmas)
        errors = (made - self._converged).square().flatten(1).mean(1).sqrt()
        return {"errors": [round(e, 6) for e in errors.tolist()], "cost": costs.cost.blocks / len(errors)}

    def grid(self, steps: int) -> Tensor:
        """Even in log-SNR over the model's range."""
        return logsnr(steps, self.model.sigma_min, self.model.sigma_max)

    def solved(self, rule: Rule, sigmas: Tensor) -> Tensor:
        """The end points of all samples."""
        with torch.no_grad():
            return solve(rule, self._denoiser, self._noise, sigmas)


@contextmanager
def accelerated(model: NetworkDenoiser, accelerator: str) -> Iterator[None]:
    """With the accelerator that a command would spell like this; empty: none."""
    accelerate(model, *([parse(accelerator)] if accelerator else []))
    try:
        yield
    finally:
        decelerate(model)


def rmse(row: Mapping[str, Any]) -> float:
    """Of all its samples together."""
    return math.sqrt(statistics.fmean(error**2 for error in row["errors"]))


def bench(path: Path = RESULTS, rows: Sequence[Row] = ROWS) -> dict[str, Any]:
    """Measures the rows that are missing; written after each of them."""
    judged = {"model": "digits", "seeds": SEEDS, "reference": REFERENCE}
    content = read(path)
    if content.get("judged") != judged:
        content = {"judged": judged, "rows": {}}
    missing = [row for row in rows if row.key not in content["rows"]]
    judge = Judge(range(SEEDS)) if missing else None
    for row in missing:
        assert judge is not None, "there is one where something is missing"
        content["rows"][row.key] = judge.measured(row)
        log.info("%s: %.4f at %.2f", row.key, rmse(content["rows"][row.key]), content["rows"][row.key]["cost"])
        write(path, {**content, "environment": environment()})
    return read(path)


def printed(content: Mapping[str, Any]) -> str:
    """The rows that are there as Markdown, by their cost."""
    if not content:
        return MISSING
    found = [(row, content["rows"][row.key]) for row in ROWS if row.key in content["rows"]]
    found.sort(key=lambda pair: (pair[1]["cost"], rmse(pair[1])))
    cells = [
        [row.solver, str(row.steps), f"`{row.accelerator}`" if row.accelerator else "", f"{values['cost']:.2f}",
         f"{rmse(values):.4f}"] for row, values in found
    ]  # fmt: skip
    table = markdown_table(["solver", "steps", "accelerator", "cost", "RMSE"], cells)
    return f"{table}\n\n{measured_in(content['environment'])}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the table, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of the rows")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(printed(read(args.out) if args.print else bench(args.out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
