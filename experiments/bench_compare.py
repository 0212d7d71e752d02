"""The README's comparisons: a table for each count of calls, then all of them against every hand-made solver.

    python -m epd.experiments.bench_compare digits-exact
    python -m epd.experiments.bench_compare digits

The tables are what `epd distill --model MODEL --calls C` learns with seed 0 (for `digits` on the smaller budget that
TRAINING says); they stay in results/tables/ and are not learned again while they are there. Writes
results/compare_MODEL.json and docs/pareto_MODEL.png.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch

from ..commands.models import load_model
from ..distill.config import DistillConfig
from ..distill.plan import make_plan
from ..distill.train import distill
from ..evaluation.compare import compare
from ..evaluation.judges import judges_of
from ..evaluation.pareto import costs, pareto_plot
from ..formats.files import write_atomically
from ..solvers.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
DOCS = Path(__file__).resolve().parent.parent / "docs"
CALLS = (3, 5, 7, 9)
FAMILIES = ("default", "s4s")
# Samples, batch, samples that schedules are chosen on, dtype, tolerance. The network costs far more than the mixture:
# fewer samples, and end points that a float32 network supports.
MEASURED: dict[str, tuple[int, int, int, torch.dtype, float]] = {
    "digits-exact": (2048, 512, 256, torch.float64, 1e-6),
    "digits": (256, 64, 64, torch.float32, 1e-4),
}

# What differs from the defaults, which take half an hour and more a table on two cores; the tables record it, too.
TRAINING: dict[str, dict[str, object]] = {
    "digits-exact": {},
    "digits": {"pool": 1024, "validation": 256, "batch": 64, "screening": 60, "iterations": 500},
}

log = logging.getLogger("epd")


def learned(model_name: str, family: str, calls: int) -> Table:
    """The table of a run with the model's defaults, from an earlier call where there was one."""
    path = RESULTS / "tables" / f"{model_name}-{family}-{calls}.json"
    if path.exists():
        return Table.load(path)
    model = load_model(model_name)
    config = DistillConfig.model_validate({"family": family, "calls": calls, **TRAINING[model_name]})
    began = time.perf_counter()
    *_, last = distill(model, make_plan(model, config))
    path.parent.mkdir(parents=True, exist_ok=True)
    last.table.save(path)
    seconds = time.perf_counter() - began
    log.info("learned %s in %.0f s: RMSE %.4f on held-out noise", path.name, seconds, last.state.best_rmse)
    return last.table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(MEASURED))
    parser.add_argument("--calls", type=int, nargs="*", default=list(CALLS))
    parser.add_argument("--families", nargs="*", default=["default"], choices=FAMILIES)
    parser.add_argument("--learn-only", action="store_true", help="do not compare yet")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = [(family, calls) for family in args.families for calls in args.calls]
    tables = {f"{family}-{calls}": learned(args.model, family, calls) for family, calls in wanted}
    if args.learn_only:
        return
    samples, batch, tuning, dtype, tolerance = MEASURED[args.model]
    model = load_model(args.model)
    found = compare(
        model,
        tables,
        CALLS,
        samples,
        batch,
        **judges_of(args.model),
        dtype=dtype,
        tuning=tuning,
        tolerance=tolerance,
        alphas_cumprod=model.alphas_cumprod,
    )
    name = args.model.replace("-", "_")
    write_atomically(RESULTS / f"compare_{name}.json", found.to_json().encode())
    pareto_plot(found, costs(found)[:2], DOCS / f"pareto_{name}.png")


if __name__ == "__main__":
    main()
