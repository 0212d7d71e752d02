"""What docs/study.md shows of what the study has measured so far."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..learned_results import contents, of_model
from ..markdown import MISSING, markdown_table, measured_in
from .cells import CALLS, HEADLINE, OURS, PEERS, WORLDS
from .cells import later as later_cells
from .parts import ablations, failures, transfers
from .results import Files, ahead, solvers

FOLDER = Path(__file__).resolve().parent.parent / "results" / "study"


def seeds(files: Files) -> str:
    """How many training seeds there are, and how long a run is."""
    rows = []
    for name in HEADLINE:
        results, training = of_model(files, name), WORLDS[name].training
        if results.runs:
            count = {family: len(results.seeds(family, CALLS[0])) for family in (*OURS, *PEERS)}
            updates = f"{training['screening']} and {training['iterations']} of {training['batch']}"
            few, many = min(count.values()), max(count.values())
            runs = str(many) if few == many else f"{few} to {many}"
            rows.append([f"`{name}`", runs, updates, f"{training['pool']:,}", f"{results.judged['samples']:,}"])
    head = ["world", "training seeds", "updates from each start and from the best", "trajectories", "measured samples"]
    return markdown_table(head, rows) if rows else MISSING


def cost(files: Files) -> str:
    """Seconds of the processor, by subject and in all."""
    spent: dict[tuple[str, bool], dict[str, float]] = {}  # by subject, and whether it is outside of the hour
    outside, more = {cell.path(Path()).as_posix() for cell in later_cells()}, 0
    for path, content in files.items():
        subject, kind = path.split("/")[0], "learning" if "table" in content else "measuring"
        kind = "teacher and end points" if path.endswith("teacher.json") else kind
        later = path in outside
        more += later
        own = spent.setdefault((subject, later), {})
        own[kind] = own.get(kind, 0.0) + content.get("cpu_seconds", 0.0)
        own["measuring"] = own.get("measuring", 0.0) + content.get("measuring_cpu_seconds", 0.0)
    if not spent:
        return MISSING
    kinds = ["teacher and end points", "learning", "measuring"]
    rows = [[f"`{subject}`" + ", later" * later, *(f"{own.get(kind, 0.0):.0f}" for kind in kinds),
             f"{sum(own.values()) / 60:.1f}"] for (subject, later), own in spent.items()]  # fmt: skip
    total = sum(sum(own.values()) for (_, later), own in spent.items() if not later)
    said = f"{len(files) - more} cells took {total / 60:.0f} minutes of one core, {total / 120:.0f} minutes of two"
    said += f"; {more} later ones, which `--only` makes, are not among them:" if more else ":"
    environments = [content["environment"] for content in files.values() if "environment" in content]
    table = markdown_table(["seconds of the processor", *kinds, "minutes"], rows)
    return f"{said}\n\n{table}\n\n{measured_in(*environments)}"


def printed(folder: Path) -> str:
    """The page's tables of what has been measured."""
    files = contents(folder)
    return "\n\n".join(f"{name}\n\n{render(files)}" for name, render in RENDERERS.items())


# Marker in a page -> what stands there.
RENDERERS: dict[str, Callable[[Files], str]] = {
    "study-ahead": ahead,
    "study-median": partial(ahead, error="median"),
    "study-seeds": seeds,
    **{f"study-{name}": partial(solvers, name) for name in HEADLINE},
    "study-ablations": ablations,
    "study-transfers": transfers,
    "study-failures": failures,
    "study-cost": cost,
}
