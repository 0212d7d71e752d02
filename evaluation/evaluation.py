"""What an evaluation is: a row for each solver, JSON, Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Mean of a reward over all samples, and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True)
class Row:
    """One solver, measured.

    Args:
        solver: its name; `learned`: a table rather than a hand-made solver.
        schedule: of a hand-made solver; `learned` for a table.
        calls, evaluations: sequential network calls and network evaluations of one sample, recorded.
        samples: that were drawn.
        fid: Frechet distance of its features to the reference's.
        kid, kid_std: kernel distance to them, mean and deviation over subsets; None where the reference has no
            features.
        precision, recall: shares of samples within the reference's manifold and the reverse; None likewise.
        rewards: by name.
    """

    solver: str
    learned: bool
    schedule: str
    calls: int
    evaluations: int
    samples: int
    fid: float
    kid: float | None = None
    kid_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    rewards: dict[str, Score] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """All rows, and how they were measured.

    Args:
        features: name of the extractor; `width` of its rows.
        reference: where it came from; `reference_count` pictures, None where its file does not say.
        seed: of the first sample.
    """

    model: str
    guidance: float
    features: str
    width: int
    reference: str
    reference_count: int | None
    samples: int
    seed: int
    dtype: str
    rows: tuple[Row, ...]
    environment: dict[str, str | int]

    def to_json(self) -> str:
        """JSON text, with the Markdown table beside the numbers."""
        return json.dumps({**dataclasses.asdict(self), "markdown": self.markdown()}, indent=1) + "\n"

    def markdown(self) -> str:
        """A table of the rows, fewest calls first, and what it was measured with."""
        rewards = list(dict.fromkeys(name for row in self.rows for name in row.rewards))
        head = ["solver", "schedule", "calls", "evaluations", "n", "FID", "KID", "precision", "recall", *rewards]
        rows = sorted(self.rows, key=lambda row: (row.calls, row.evaluations, row.fid))
        body = [_line(row, rewards) for row in rows]
        rule = ["---", "---", *["---:"] * (len(head) - 2)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]
        count = "" if self.reference_count is None else f" ({self.reference_count:,} pictures)"
        about = (
            f"Model `{self.model}`, guidance {self.guidance:g}, seeds {self.seed} to {self.seed + self.samples - 1}; "
            f"reference `{self.reference}`{count}; features `{self.features}` ({self.width})."
        )
        return "\n".join([*lines, "", about, ""])


def _line(row: Row, rewards: Sequence[str]) -> list[str]:
    kid = "" if row.kid is None else f"{row.kid:.5f} ± {row.kid_std:.5f}"
    shares = ["" if share is None else f"{share:.3f}" for share in (row.precision, row.recall)]
    scores = [row.rewards.get(name) for name in rewards]
    told = ["" if score is None else f"{score.mean:.4g} ± {score.error:.2g}" for score in scores]
    name = f"**{row.solver}**" if row.learned else row.solver
    return [name, row.schedule, str(row.calls), str(row.evaluations), str(row.samples), f"{row.fid:.3f}", kid,
            *shares, *told]  # fmt: skip
