"""A page of runs: `report` puts it together from what their folders hold and what their models show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..pipelines.table_description import describe, headline
from ..runs.pictures import tile
from . import inspection_figures as figures
from . import report_html as html
from .comparison import markdown
from .inspection import Inspection
from .inspection_text import verdict
from .pareto import costs, pareto_figure
from .report_commands import UNKNOWN, commands, compare_command, report_command
from .report_look import Look
from .report_run import Run, at_calls, at_evaluations, times, verdicts

COLUMNS = 4  # of a gallery


def report(runs: Sequence[Run], looks: Mapping[str, Look], models: Mapping[str, str]) -> str:
    """The page, as HTML that loads nothing; the same inputs make the same bytes.

    Args:
        runs: at least one, their names different.
        looks: of the runs, by name, whose models were there.
        models: by the run's name, what to type after `--model`; none: UNKNOWN.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("a report has figures and matplotlib is not installed: pip install 'epd[plots]'") from error
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [html.heading(1, f"Learned solvers: {title}")]
    for number, run in enumerate(runs, 1):
        parts += [html.verdict(f"{run.name} ({run.kind})", text, f"run-{number}") for text in verdicts(run)]
    if len(runs) > 1:
        parts.append(_overview(runs))
    for number, run in enumerate(runs, 1):
        parts += _run(run, f"run-{number}", looks.get(run.name), models.get(run.name, UNKNOWN))
    return html.page(f"epd report: {title}", parts)


def _overview(runs: Sequence[Run]) -> str:
    """A line for each run."""
    head = ["run", "by", "model", "calls", "evaluations", "RMSE", "at equal calls", "at equal evaluations"]
    rows = []
    for run in runs:
        table, c = run.table, run.comparison
        cells = run.cells()
        row = [run.name, run.kind, run.model, "", "", "", "", ""]
        if table is not None:
            row[3:5] = str(table.depth), str(table.nfe)
        if c is not None and table is not None and cells:
            found = at_calls(c, cells[0]), at_evaluations(c, cells[0])
            row[5:] = f"{cells[0].rmse:.4g}", *("" if s is None else times(s.ratio) for s in found)
        rows.append(row)
    note = "RMSE to the converged end; the last two columns: as a multiple of the best hand-made solver's error."
    links = [f"run-{number}" for number in range(1, len(runs) + 1)]
    return html.grid(head, rows, links) + html.paragraph(note, "note")


def _run(run: Run, anchor: str, look: Look | None, model: str) -> list[str]:
    about = [run.kind, f"model {run.model}" if run.model else "", headline(run.table) if run.table else ""]
    return [
        html.heading(2, run.name, anchor),
        html.paragraph("; ".join(part for part in about if part), "note"),
        *_tuning(run),
        *_against_others(run, model),
        *_table(run),
        *_trajectories(run, look, model),
        *_gallery(run, look, model),
        *_origin(run, model),
    ]


def _tuning(run: Run) -> list[str]:
    if not run.tuned:
        return []
    parts = [html.heading(3, "Within the budget"), html.paragraph(str(run.tuned.get("verdict", "")))]
    tried = [t for t in run.tuned.get("tried", []) if isinstance(t, dict)]
    head = ["sequential calls", "points", "milliseconds a request", "RMSE on held-out noise"]
    keys = ("calls", "points", "latency_ms", "rmse")
    rows = [["not learned" if t.get(k) is None else f"{t[k]:.4g}" for k in keys] for t in tried]
    return [*parts, html.grid(head, rows)]


def _against_others(run: Run, model: str) -> list[str]:
    head = html.heading(3, "Error against cost")
    c = run.comparison
    if c is None:
        return [head, html.missing("Not compared with hand-made solvers yet", compare_command(run, model))]
    shown = []
    for cost in costs(c)[:2]:
        text = f"RMSE to the converged end over {cost.label}, {c.samples:,} samples; both axes are logarithmic"
        shown.append(html.Picture(html.png_of_figure(pareto_figure(c, [cost])), text))
    lines = []
    if run.table is not None and not run.cells():
        lines = [html.missing("It has no measurement of this run's table", compare_command(run, model))]
    if not c.cells:
        return [head, *lines]
    tables = html.folded("The numbers, solver by solver", html.markdown_tables(markdown(c)))
    return [head, *lines, html.pictures(shown, "side"), tables]


def _table(run: Run) -> list[str]:
    if run.table is None:
        note = "A comparison holds no tables; give the folders of the runs beside it for theirs."
        return [html.paragraph(note, "note")]
    alt = f"Heat map of the numbers of {run.name}, a row for each step"
    picture = html.Picture(html.png_of_figure(figures.heat_map(run.table, run.name)), alt)
    text = html.folded("The numbers as text", html.preformatted(describe(run.table)))
    return [html.heading(3, "The learned table"), html.pictures([picture]), text]


def _trajectories(run: Run, look: Look | None, model: str) -> list[str]:
    if run.table is None:
        return []
    head = html.heading(3, "What it does on its way")
    if look is None or look.inspection is None:
        return [head, html.missing(_why(look, "Not followed"), report_command(run, model))]
    i = look.inspection
    shown = [(figures.error(i), "Distance to the converged trajectory over sigma, of each state and of each step")]
    for each in i.shown:
        if each.pictures is not None:
            text = f"Seed {each.seed}: states and denoised predictions, learned and converged, from noise to the end"
            shown.append((figures.trajectory(i, each, each.pictures), text))
        text = f"Seed {each.seed}: trajectories along the principal components, with the points that were evaluated"
        shown.append((figures.projection(i, each), text))
    shown += [
        (figures.directions(i), "Angles of anchor, points and update to the true mean slope of each step"),
        (figures.shape(i), "Turn of the slope in each step; variance explained by 1, 2, 3 principal components"),
        (figures.end(i), "Histograms of the errors at the end"),
    ]
    drawn = [html.Picture(html.png_of_figure(figure), text) for figure, text in shown]
    return [head, html.preformatted(verdict(i), wrap=True), *_followed(drawn, i)]


def _followed(drawn: Sequence[html.Picture], i: Inspection) -> list[str]:
    """The telling figures, and the rest folded."""
    more = html.folded("Directions, shape of the trajectories, errors at the end", html.pictures(drawn[-3:]))
    note = f"{i.samples} samples from seed {i.seed}; converged to a tolerance of {i.tolerance:g}."
    return [html.pictures(drawn[:-3]), more, html.paragraph(note, "note")]


def _gallery(run: Run, look: Look | None, model: str) -> list[str]:
    if run.table is None:
        return []
    head = html.heading(3, "Samples")
    if look is None or not look.gallery:
        if look is not None and not look.problem:
            return [head, html.paragraph("Samples of this model are no pictures.", "note")]
        return [head, html.missing(_why(look, "Not drawn"), report_command(run, model))]
    shown = []
    for panel in look.gallery:
        words = panel.name if panel.rmse is None else f"{panel.name}: RMSE {panel.rmse:.3g} over these"
        shown.append(html.Picture(html.png_of_pixels(tile(panel.images, COLUMNS)), f"Samples: {panel.name}", words))
    parts = [head, html.pictures(shown, "samples")]
    parts.append(html.paragraph(f"The same seeds everywhere: {', '.join(map(str, look.seeds))}.", "note"))
    if len(look.gallery) < 3:
        note = "The best hand-made solver at equal calls is not known or not ours"
        parts.append(html.missing(note, compare_command(run, model)))
    return parts


def _why(look: Look | None, what: str) -> str:
    return f"{what}, without a model" if look is None else f"{what}: {look.problem}" if look.problem else what


def _origin(run: Run, model: str) -> list[str]:
    """Config, environment, commands."""
    parts = [html.heading(3, "Configuration")]
    if run.config or run.training:
        text = json.dumps(dict(run.config or run.training), indent=2, ensure_ascii=False)
        parts.append(html.folded("As recorded", html.preformatted(text, wrap=True)))
    else:
        parts.append(html.missing("Not recorded here", "epd distill"))
    parts.append(html.heading(3, "Environment of the measurement"))
    if run.environment:
        parts.append(html.folded("As recorded", html.pairs({k: str(v) for k, v in run.environment.items()})))
    else:
        recorded = compare_command(run, model) if run.table else "epd compare"
        parts.append(html.missing("Not recorded here; a comparison does", recorded))
    parts += [html.heading(3, "Commands"), html.preformatted("\n".join(commands(run, model)))]
    if model == UNKNOWN:
        note = f"{UNKNOWN} stands for what the run was given as --model, with its options."
        parts.append(html.paragraph(note, "note"))
    return parts
