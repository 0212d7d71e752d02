"""`make demo`: learns a 5-call solver for the embedded `digits` network and shows what it is worth, in minutes.

Everything lands in one folder; a second run reuses what the first one learned.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoisers.protocol import Model
    from ..distill.config import DistillConfig
    from ..evaluation.comparison import Comparison
    from ..evaluation.handmade import HandMade
    from ..solvers.table import Table

CALLS = 5
# A taste of the real thing: `epd distill` and `epd compare` by default use many more samples, starts and solvers.
RIVALS = ("diffusers DDIM", "iPNDM-3 AFS", "iPNDM-3 variable AFS", "diffusers DPM++ 2M", "diffusers UniPC-2 bh2")
COUNTS = (3, 5, 8, 12)
SAMPLES, TUNING = 128, 24
SHOWN, COLUMNS = 40, 8
TRACED = 16

log = logging.getLogger("epd")


def config() -> DistillConfig:
    """A small budget, of about two minutes on two cores, at the price of some accuracy."""
    from ..distill.config import DistillConfig

    return DistillConfig(
        calls=CALLS,
        batch=64,
        pool=384,
        validation=128,
        screening=10,
        iterations=160,
        teacher_tolerance=1e-3,
    )


def compare_with(model: Model, table: Table, out: Path) -> Comparison:
    """The table against some hand-made solvers, with plots."""
    import torch

    from ..denoisers.timesteps import linear_beta
    from ..evaluation.compare import compare, write_comparison
    from ..evaluation.comparison import markdown
    from ..evaluation.judges import judges_of

    found = compare(
        model,
        {"epd": table},
        COUNTS,
        SAMPLES,
        SAMPLES,
        **judges_of(model.name),
        dtype=torch.float32,
        tuning=TUNING,
        tolerance=1e-3,
        alphas_cumprod=linear_beta(),
        solvers=RIVALS,
    )
    write_comparison(found, out / "compare")
    print(markdown(found))
    return found


def best_rival(found: Comparison) -> tuple[HandMade, Tensor, str]:
    """The hand-made solver that came nearest at CALLS, its sigmas, and a name that says so."""
    from ..denoisers.digits import digits
    from ..denoisers.timesteps import linear_beta
    from ..evaluation.handmade import candidate_schedules, handmade

    cell = min((c for c in found.cells if not c.learned and c.asked == CALLS), key=lambda c: c.rmse)
    solver = next(s for s in handmade("ve") if s.name == cell.solver)
    model = digits()
    make = candidate_schedules("ve", model.sigma_min, model.sigma_max, linear_beta())[cell.schedule]
    return solver, make(cell.steps), f"{cell.solver.removeprefix('diffusers ')}, {CALLS} calls"


def pictures(model: Model, table: Table, found: Comparison, out: Path) -> None:
    """The same digits by the converged ODE, the best hand-made solver and the learned one; their trajectories."""
    import torch

    from ..denoisers.noise import unit_noise
    from ..evaluation.plots import Traced, save_grid, save_side_by_side, trajectory_plot
    from ..solvers.exact import converged
    from ..solvers.solve import solve

    solver, sigmas, name = best_rival(found)
    learned, levels = f"learned, {CALLS} calls", torch.tensor(table.sigmas)
    seeds = list(range(SHOWN))
    denoiser, noise = model.for_seeds(seeds), unit_noise(seeds, model.shape)
    with torch.no_grad():
        panels = {
            "converged ODE": converged(denoiser, noise, (model.sigma_max, model.sigma_min), 1e-3, 1e-3)[-1],
            name: solve(solver.rule(sigmas), denoiser, noise, sigmas),
            learned: solve(table.rule(), denoiser, noise, levels),
        }
    shown = {title: model.decode(x) for title, x in panels.items()}
    save_side_by_side(shown, out / "samples.png", COLUMNS)
    for title, images in zip(("teacher", "handmade", "learned"), shown.values(), strict=True):
        save_grid(images, out / f"{title}.png", COLUMNS)
    few = seeds[3 : 3 + TRACED]
    solvers = [Traced(name, solver.rule(sigmas), sigmas), Traced(learned, table.rule(), levels, learned=True)]
    trajectory_plot(model, solvers, unit_noise(few, model.shape), few, out / "trajectory.png")


def verdict(found: Comparison) -> str:
    """A few sentences for a person: learned against hand-made, from what was just measured."""
    learned = next(c for c in found.cells if c.learned)
    rivals = [c for c in found.cells if not c.learned]
    calls, total = (
        min((c for c in rivals if c.asked == at), key=lambda c: c.rmse)
        for at in (learned.calls, learned.evaluations)
    )
    also = f"; at {total.asked}, as many evaluations: {total.solver}, {total.rmse:.4f}"
    more = also if total.asked != calls.asked else ""
    enough = [c for c in rivals if c.rmse <= learned.rmse]
    nearest = f"None of them comes as near with up to {max(c.asked for c in rivals)} calls."
    if enough:
        first = min(enough, key=lambda c: (c.asked, c.rmse))
        nearest = (
            f"The first of them to come as near is {first.solver} with {first.asked} calls, which take "
            f"{first.seconds / learned.seconds:.1f} times as long."
        )
    return (
        f"learned: {learned.calls} sequential calls ({learned.evaluations} evaluations), RMSE {learned.rmse:.4f} to "
        "the exact end points.\n"
        f"best hand-made of those tried at {calls.asked} calls: {calls.solver}, {calls.rmse:.4f}{more}.\n{nearest}"
    )


def closing(out: Path, seconds: float) -> str:
    """Where everything is and what to do next."""
    rows = {
        "samples.png": "the same digits: converged ODE, hand-made, learned",
        "trajectory.png": "what each solver's states are on their way to, and how far it strays",
        "compare/pareto.png": "accuracy against sequential calls, evaluations and seconds",
        "compare/comparison.md": "every number of the comparison",
        "solver.json": "the learned solver: a table of a few dozen numbers",
        "solver.txt": "the same for a person",
        "tb/": "how it was learned: tensorboard --logdir " + str(out / "tb"),
    }
    lines = [f"  {out / name!s:<36} {text}" for name, text in rows.items()]
    table = out / "solver.json"
    after = [
        f"  epd sample --model digits --table {table} -n 1000 --out {out / 'samples'}",
        "  epd distill --model digits --calls 7 --out runs/digits-7    # the full training; --dry-run says how long",
        f"  epd compare --model digits --tables {table} --calls {CALLS}    # every hand-made solver, 2,048 samples",
        "  epd distill --config experiments/configs/sd15-512.yaml --prompts prompts.txt --out runs/sd15",
    ]
    where, what = f"Done in {seconds:.0f} s. Where things are:", "What to do next (. .venv/bin/activate first):"
    return "\n".join([where, *lines, "", what, *after])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the result")
    parser.add_argument("--fresh", action="store_true", help="learn again, even where the folder holds a solver")
    given = parser.parse_args(argv)
    out, began = given.out, time.monotonic()
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch: see epd.cli
    os.environ.setdefault("EPD_CACHE", str(out / "cache"))
    from ..commands.logs import set_up_logging

    set_up_logging(0)
    if given.fresh:
        shutil.rmtree(out, ignore_errors=True)
    print(f"1/3  learning a solver of {CALLS} sequential calls for the embedded digits network", flush=True)
    table, model = learn(out)
    print(f"\n2/3  comparing it with hand-made solvers at {', '.join(map(str, COUNTS))} calls", flush=True)
    found = compare_with(model, table, out)
    print("3/3  drawing\n", flush=True)
    pictures(model, table, found, out)
    print(verdict(found) + "\n\n" + closing(out, time.monotonic() - began))
    return 0


def learn(out: Path) -> tuple[Table, Model]:
    """The learned table, from this run or an earlier one, and the model."""
    from ..denoisers.digits import digits
    from ..distill.run import run_distill
    from ..formats.files import write_atomically
    from ..pipelines.table_description import describe
    from ..solvers.table import Table

    model = digits()
    path = run_distill(model, config(), out, resume=True)
    assert path is not None
    table = Table.load(path)
    text = describe(table)
    write_atomically(out / "solver.txt", (text + "\n").encode())
    print("\n" + text, flush=True)
    return table, model


if __name__ == "__main__":
    raise SystemExit(main())
