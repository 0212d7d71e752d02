"""How much reward each baseline of the study of sample efficiency makes of as many rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .markdown import MISSING, markdown_table, measured_in
from .refined_cells import EFFICIENCY, REWARD


def require_equal(what: str, cells: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> None:
    """Raises a ValueError where cells differ in other settings than those that are varied."""
    settings = [{key: value for key, value in cell["settings"].items() if key not in varied} for cell in cells]
    if any(one != settings[0] for one in settings):
        raise ValueError(f"{what} had different settings: run `python -m epd.experiments.bench_refine`")


@dataclass(frozen=True)
class Course:
    """The held-out gain of the reward along the refinements of one kind.

    Args:
        rollouts: (T,) after which it was tested.
        gains: (seeds, T).
    """

    name: str
    rollouts: tuple[int, ...]
    gains: Tensor

    @property
    def label(self) -> str:
        """Baseline, noise, and prompts x tables in words."""
        row = EFFICIENCY[self.name]
        noise = "shared" if row["shared_noise"] else "own"
        return f"{row['baseline']}, {noise} noise, {row['groups']} x {row['group_size']}"


def courses(files: Mapping[str, Any], name: str) -> list[Course]:
    """The study of sample efficiency of a model, one course for each row that all its seeds have been measured of."""
    out = []
    for what in EFFICIENCY:
        own = [cell for cell in _studied(files, name) if cell["what"] == what]
        if own:
            gains = [[test["gain"][REWARD] for test in cell["course"]] for cell in own]
            rollouts = tuple(test["rollouts"] for test in own[0]["course"])
            out.append(Course(what, rollouts, torch.tensor(gains, dtype=torch.float64)))
    require_equal(f"refinements of {name}", _studied(files, name), (*next(iter(EFFICIENCY.values())), "seed"))
    return out


def _studied(files: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [c for path, c in files.items() if path.startswith(f"{name}/") and c.get("what") in EFFICIENCY]


def efficiency(name: str, files: Mapping[str, Any]) -> str:
    """How much reward each baseline makes of as many rollouts."""
    found = courses(files, name)
    if not found:
        return MISSING
    most = max(float(course.gains[:, -1].mean()) for course in found)
    shown = [i for i in range(len(found[0].rollouts)) if i in _thirds(len(found[0].rollouts))]
    rows = []
    for course in sorted(found, key=lambda one: -float(one.gains.mean())):
        values = [f"{float(course.gains[:, i].mean()):+.4f} ({', '.join(f'{v:+.3f}' for v in course.gains[:, i])})"
                  for i in shown]  # fmt: skip
        half = next((f"{r:,}" for r, g in zip(course.rollouts, course.gains.mean(0), strict=True) if g >= most / 2), "")
        rows.append([course.label, *values, half])
    after = [f"{found[0].rollouts[i]:,} rollouts" for i in shown]
    heads = ["baseline, noise, prompts x tables", *after, "rollouts to half of the largest gain"]
    cells = _studied(files, name)
    heading = f"Gain of `graded` on held-out prompts of `{name}`, mean (each of {len(found[0].gains)} training seeds):"
    return f"{heading}\n\n{markdown_table(heads, rows)}\n\n{measured_in(*(cell['environment'] for cell in cells))}"


def _thirds(count: int) -> list[int]:
    return [count // 4, count // 2, count - 1]
