"""The model card of a learned solver."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..solvers.table import Table
from .picture import title
from .table_text import MEMORY, has_analytic_anchor, lookahead_rows, memory_rows, point_sigmas

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
        *_numbers(table),
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
        "accelerators": json.dumps(p.accelerators) if p.accelerators else "",
        "parent table": p.parent,
        "notes": p.notes,
        "citation": p.citation,
    }
    recorded = [(name, _cell(value)) for name, value in facts.items() if value]
    return _columns(("", ""), recorded) if recorded else "Not recorded."


def _numbers(table: Table) -> list[str]:
    """Every learned number: a table of steps, then the weights of earlier slopes and the look-ahead, where there are
    any.
    """
    free = [] if table.consistent else ["The weights of a step are free: they need not sum to one."]
    head, rows = _steps(table)
    scaled = any("told sigma" in cell for cell in head)
    levels = ["Told sigma: the noise level that the network is told there."] if scaled else []
    parts = [_columns(head, rows), *levels, *free, *_guidance(table)]
    memory, directions = [*memory_rows(table)], [*lookahead_rows(table)]
    if memory:
        parts += [f"Memory: {MEMORY}.", _columns(memory[0], _from_one(memory[1:], 1))]
    if directions:
        parts += [
            "Look-ahead: the direction to each point, as weights of the anchor slope and of memory.",
            _columns(directions[0], _from_one(directions[1:], 2)),
        ]
    return parts


def _steps(table: Table) -> tuple[list[str], list[tuple[str, ...]]]:
    """A head and one row per step."""
    anchor_told, points_told = bool((table.anchor_scale != 1).any()), bool((table.sigma_scale != 1).any())
    rows = []
    for n, (sigma, sigma_next) in enumerate(itertools.pairwise(table.sigmas.tolist())):
        anchor = f"{table.anchor[n]:.4f}"
        if has_analytic_anchor(table, n):
            anchor += " (analytic)"
        elif anchor_told:
            anchor += f" ({table.anchor_scale[n] * sigma:.4g})"
        points = _points(table, n, points_told)
        calls = table.calls[n] - (table.calls[n] == 2 and has_analytic_anchor(table, n))
        rows.append((str(n + 1), f"{sigma:.6g}", f"{sigma_next:.6g}", anchor, *points, str(calls)))
    anchors = "anchor (told sigma)" if anchor_told else "anchor"
    points = [f"point {j + 1}: weight{' (told sigma)' * points_told}" for j in range(table.num_nodes)]
    return ["step", "sigma", "to sigma", anchors, *points, "calls"], rows


def _guidance(table: Table) -> list[str]:
    """Factors of the guidance, where one is not 1."""
    if not table.scales_guidance:
        return []
    rows = []
    for n, used in enumerate(table.used):
        anchor = "-" if has_analytic_anchor(table, n) else f"{table.anchor_guidance[n]:.4f}"
        pairs = zip(table.guidance_scale[n], used.lookahead, strict=True)
        rows.append((str(n + 1), anchor, *(f"{f:.4f}" if inside else "-" for f, inside in pairs)))
    head = ["step", "anchor", *(f"point {j + 1}" for j in range(table.num_nodes))]
    return ["Guidance: factors of the guidance scale that the pipeline is called with.", _columns(head, rows)]


def _points(table: Table, n: int, levels: bool) -> Iterator[str]:
    """Node and weight of each fan point of a step, with `levels` also the noise level that the network is told."""
    weights, sigmas = table.weights[n] * table.slope_scale[n], table.sigma_scale[n] * point_sigmas(table, n)
    for j, inside in enumerate(table.used[n].lookahead):
        text = f"{table.nodes[n, j]:.4f}: {weights[j]:.4f}" + (f" ({sigmas[j]:.4g})" if levels else "")
        yield text if inside else "-"


def _from_one(rows: Sequence[tuple[str, ...]], count: int) -> list[tuple[str, ...]]:
    """Rows whose first `count` cells are numbered from one, as the steps and points above are."""
    return [(*(str(int(cell) + 1) for cell in row[:count]), *row[count:]) for row in rows]


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    """One line that cannot leave its cell."""
    return " ".join(text.split()).replace("|", "\\|")
