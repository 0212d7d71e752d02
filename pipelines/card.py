"""The model card of a learned solver."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..solvers.table import Table
from .picture import title

MARK = "<!-- written by epd: save_learned replaces this file -->"


def card(
    table: Table,
    where: str,
    subfolder: str | None,
    metrics: Mapping[str, float],
    base_model: str,
    pictures: Sequence[Path],
) -> str:
    """Markdown with the hub's metadata in front.

    Args:
        table: what it describes.
        where: hub id or folder of this repository.
        subfolder: of the scheduler's configuration, if there is one.
        metrics: name -> number, added to those of the table's provenance.
        base_model: hub id of the pipeline, or empty.
        pictures: paths relative to the card.
    """
    measured = [(name, f"{value:.6g}") for name, value in {**table.provenance.metrics, **metrics}.items()]
    parts = [
        _front(table, base_model),
        MARK,
        f"# Learned solver{f' for {base_model}' if base_model else ''}",
        f"{title(table)}. The model's weights are untouched: only the numbers below were learned.",
        *(f"![{path.stem}]({path.as_posix()})" for path in pictures),
        "## Use",
        _usage(base_model, where, subfolder),
        "## What it was learned for",
        _origin(table),
        *(["## Measured", _columns(("what", "value"), measured)] if measured else []),
        "## Table",
        _steps(table),
        f"SHA-256 of the numbers: `{table.digest}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front(table: Table, base_model: str) -> str:
    lines = ["---", "library_name: diffusers", "tags:", "- epd", "- scheduler", "- diffusion", "- learned-solver"]
    if base_model and base_model.count("/") == 1 and not base_model.startswith(("/", ".")):
        lines.append(f"base_model: {json.dumps(base_model)}")
    return "\n".join([*lines, "---"])


def _usage(base_model: str, where: str, subfolder: str | None) -> str:
    model = base_model or "the/pipeline"
    text = f"""```python
import epd
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({json.dumps(model)})
epd.load_learned(pipe, {json.dumps(where)})  # a hub id or a folder; epd.disable(pipe) takes it out again
image = pipe("a red fox in snow", num_inference_steps=epd.summary(pipe).depth).images[0]
```"""
    if subfolder is None:
        return text
    return f"""{text}

or, as a scheduler like any other (without the batched fan: one call for each point):

```python
scheduler = epd.EPDScheduler.from_pretrained({json.dumps(where)}, subfolder={json.dumps(subfolder)})
pipe = DiffusionPipeline.from_pretrained({json.dumps(model)}, scheduler=scheduler)
```"""


def _origin(table: Table) -> str:
    p = table.provenance
    size = " x ".join(str(side) for side in p.resolution)
    facts = {
        "model": p.model,
        "path": p.path,
        "prediction": p.prediction,
        "schedule": p.schedule,
        "guidance": "" if p.guidance is None else f"{p.guidance:g}",
        "resolution": size,
        "seed": "" if p.seed is None else str(p.seed),
        "parent table": p.parent,
        "notes": p.notes,
        "citation": p.citation,
    }
    recorded = [(name, _cell(value)) for name, value in facts.items() if value]
    return _columns(("", ""), recorded) if recorded else "Not recorded."


def _steps(table: Table) -> str:
    sigmas, rows = table.sigmas, []
    for n in range(table.num_steps):
        points = zip(table.nodes[n], table.weights[n], strict=True)
        cells = [f"{r:.4f}: {w:.4f}" for r, w in points]
        memory = ", ".join(f"{w:.4f}" for w in table.memory[n])
        anchor = f"{table.anchor[n]:.4f}"
        rows.append((str(n + 1), f"{sigmas[n]:.6g}", f"{sigmas[n + 1]:.6g}", anchor, *cells, memory))
    fan = [f"point {j + 1}: weight" for j in range(table.num_nodes)]
    return _columns(("step", "sigma", "to sigma", "anchor", *fan, "memory"), rows)


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    """One line that cannot leave its cell."""
    return " ".join(text.split()).replace("|", "\\|")
