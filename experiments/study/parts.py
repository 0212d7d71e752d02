"""What the parts of our solver are worth, and where its tables can be used."""

from __future__ import annotations

from dataclasses import dataclass

from ..learned_results import of_model
from ..markdown import MISSING, markdown_table
from .cells import ABLATIONS, OURS, TRANSFERRED_CALLS, TRANSFERS
from .results import Entry, Files, entries, picture


@dataclass(frozen=True)
class Row:
    """An ablation against the run that differs in it alone.

    Args:
        entry, against: their errors.
        ratios: of the errors, seed by seed, the least first.
    """

    name: str
    entry: Entry
    against: Entry
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Of the seeds in the middle."""
        return self.entry.error / self.against.error


def ablation_rows(files: Files) -> list[Row]:
    """What is measured of the ablations, in their order."""
    results = of_model(files, "ablations")
    found = {entry.name: entry for entry in entries(results)}
    by_seed = {(run.family, run.seed): run.cell.rmse for run in results.runs}
    rows = []
    for name, ablation in ABLATIONS.items():
        if name in found and ablation.against in found:
            ratios = sorted(
                error / by_seed[ablation.against, seed]
                for (family, seed), error in by_seed.items() if family == name and (ablation.against, seed) in by_seed
            )  # fmt: skip
            rows.append(Row(name, found[name], found[ablation.against], tuple(ratios)))
    return rows


def ablations(files: Files) -> str:
    """What each part is worth."""
    rows = ablation_rows(files)
    if not rows:
        return MISSING
    table = []
    for row in rows:
        what = ABLATIONS[row.name]
        ratio = "" if row.name == what.against else f"{row.ratio:.2f}x ({row.ratios[0]:.2f} to {row.ratios[-1]:.2f})"
        against = "" if row.name == what.against else ABLATIONS[what.against].says
        table.append([what.about, what.says, str(row.entry.evaluations), row.entry.text(), ratio, against])
    head = ["what", "how", "evaluations", "RMSE", "times that of the run beside it", "which is"]
    plot = f"![What each part is worth, seed by seed]({picture('ablations')})"
    return f"{markdown_table(head, table)}\n\n{plot}"


def failures(files: Files) -> str:
    """Ablations that change nothing beyond chance, and those that harm most: what is not worth its trouble."""
    rows = [row for row in ablation_rows(files) if row.name != ABLATIONS[row.name].against]
    if not rows:
        return MISSING
    name = lambda row: f"{ABLATIONS[row.name].about}: {ABLATIONS[row.name].says}"  # noqa: E731
    idle = [name(row) for row in rows if row.ratios[0] <= 1 <= row.ratios[-1]]
    harms = [f"{name(row)}, {row.ratio:.2f}x" for row in sorted(rows, key=lambda r: -r.ratio) if row.ratios[0] > 1]
    better = [f"{name(row)}, {row.ratio:.2f}x" for row in sorted(rows, key=lambda r: r.ratio) if row.ratios[-1] < 1]
    parts = {"Makes no difference beyond the training seed": idle, "Is worse with every seed": harms,
             "Is better with every seed": better}  # fmt: skip
    return "\n\n".join(f"{what}: {'; '.join(said)}." for what, said in parts.items() if said)


def transfers(files: Files) -> str:
    """Tables used where they were not learned, beside one that was learned there and the best hand-made solver."""
    rows = []
    for learned, used in TRANSFERS:
        results = of_model(files, used)
        for family in OURS:
            for at in TRANSFERRED_CALLS:
                cell = files.get(f"transfer/{learned}--{used}-{family}-{at}-0.json", {}).get("cell")
                native = [run.cell for run in results.seeds(family, at) if run.seed == 0]
                others = [c for c in results.handmade if c.calls <= at]
                if cell and native and others:
                    other = min(others, key=lambda c: c.rmse)
                    moved = cell["rmse"]
                    rows.append([
                        f"`{learned}`", f"`{used}`", family, str(at), f"{moved:.4f}", f"{native[0].rmse:.4f}",
                        f"{other.rmse:.4f} ({other.group})", "yes" if moved < other.rmse else "**no**",
                    ])  # fmt: skip
    head = ["learned on", "used on", "family", "calls", "RMSE", "learned there", "best untrained there", "still ahead"]
    return markdown_table(head, rows) if rows else MISSING
