"""`epd compare`: recorded counts, best schedules, JSON and back, tables and plots."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.tables import full_table
from helpers.toy_models import toy_mixture
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Path as OdePath
from epd.evaluation import handmade
from epd.evaluation.batches import Counting
from epd.evaluation.compare import compare, write_comparison
from epd.evaluation.comparison import Comparison, by_asked, by_evaluations, every_cell, family_names, markdown
from epd.evaluation.pareto import costs, curves, pareto_figure, spread
from epd.solvers.exact import converged
from epd.solvers.table import Provenance

# KDPM2 wraps a tensor in numpy in a way that numpy 2 calls old; the warning is raised in numpy's own module.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


def learned(steps: int) -> epd.Table:
    """Two fan points a step (depth 2N - 1 with AFS, 3N - 1 evaluations), not learned at all."""
    sigmas = epd.schedules.polynomial(steps, 0.02, 20.0)
    nodes, weights = torch.tensor([[0.3, 0.7]] * steps), torch.full((steps, 2), 0.5)
    return epd.Table(sigmas, nodes, weights, afs=True)


def of_calls(calls: int) -> epd.Table:
    return full_table(1, sigmas=epd.schedules.polynomial(calls, 0.02, 20.0).tolist())


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


@functools.cache
def measured() -> Comparison:
    tables = {"ours-3": learned(2), "ours-5": learned(3)}
    return compare(
        toy_mixture(), tables, (3, 4, 5), samples=48, batch=16, seed=7, features=flat, classifier=flat, tuning=16,
        data=unit_noise(range(100), (1, 2, 2)),
    )  # fmt: skip


def test_counts_are_recorded() -> None:
    known = {solver.name: solver for solver in handmade.handmade("ve")}
    for cell in measured().cells:
        if cell.learned:
            assert (cell.calls, cell.evaluations) == {"ours-3": (3, 5), "ours-5": (5, 8)}[cell.solver]
        else:
            solver = known[cell.solver.removeprefix("GITS + ")]
            assert cell.calls == cell.evaluations == solver.step_calls * cell.steps - solver.afs <= cell.asked
            assert cell.asked - cell.calls < solver.step_calls
    assert {cell.asked for cell in measured().cells} == {3, 4, 5, 8}


def test_every_solver_of_the_issue_is_there_on_both_paths() -> None:
    paths: tuple[OdePath, ...] = ("ve", "flow")
    for path in paths:
        names = " ".join(solver.name for solver in handmade.theirs(path))
        common = ("DPM++ 2M", "DPM++ 3M", "UniPC-2 bh1", "UniPC-3 bh2", "DEIS-2")
        own = {"ve": ("DDIM", "Euler", "Heun", "DPM-Solver-2", "iPNDM"), "flow": ("FlowMatchEuler", "FlowMatchHeun")}
        assert all(name in names for name in (*common, *own[path]))
    others = [cell for cell in measured().cells if not cell.learned and not cell.peer]
    assert {cell.solver for cell in others} == {s.name for s in handmade.handmade("ve")}


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_candidates_end_where_the_model_does(path: OdePath) -> None:
    top = 20.0 if path == "ve" else 1.0
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    candidates = handmade.candidate_schedules(path, 0.02, top, (1 - betas).cumprod(0))
    assert ("discrete" in candidates) == (path == "ve")
    for make in candidates.values():
        for steps in (1, 2, 7):
            sigmas = epd.schedules.checked_sigmas(make(steps))
            assert len(sigmas) == steps + 1 and (float(sigmas[0]), float(sigmas[-1])) == (top, 0.02)


def test_the_winner_is_measured_on_all_samples_and_batches_do_not_matter() -> None:
    model, cell = toy_mixture(), next(c for c in measured().cells if c.solver == "Euler AFS" and c.asked == 4)
    noise = unit_noise(range(7, 55), model.shape, torch.float64)
    end = converged(model, noise, (model.sigma_max, model.sigma_min), 1e-9, 1e-9)[-1]

    def error(name: str, rows: int) -> float:
        sigmas = handmade.candidate_schedules("ve", model.sigma_min, model.sigma_max)[name](5)
        found = epd.solve(epd.rules.euler(afs=True), model, noise[:rows], sigmas)
        return float((found - end[:rows]).square().mean().sqrt())

    names = handmade.candidate_schedules("ve", model.sigma_min, model.sigma_max)
    assert cell.schedule == min(names, key=lambda name: error(name, 16))
    assert cell.rmse == pytest.approx(error(cell.schedule, 48), rel=1e-3)


def test_same_solver_from_two_libraries_scores_the_same() -> None:
    cells = {(cell.solver, cell.asked): cell for cell in measured().cells}
    for calls in (3, 4, 5, 8):
        pairs = [("Euler", "diffusers DDIM"), ("iPNDM-4", "diffusers iPNDM"), ("DPM-Solver++ 2M", "diffusers DPM++ 2M")]
        for ours, theirs in pairs:
            assert cells[ours, calls].rmse == pytest.approx(cells[theirs, calls].rmse, rel=1e-4)
            assert cells[ours, calls].schedule == cells[theirs, calls].schedule


def test_views_of_the_samples() -> None:
    c = measured()
    for cell in c.cells:
        assert cell.frechet is not None and cell.frechet_data is not None and cell.agreement is not None
        assert cell.frechet >= 0 and 0 <= cell.agreement <= 1 and cell.seconds > 0
    assert c.reference["frechet_data"] > 0
    ranked = sorted((cell for cell in c.cells if cell.asked == 5), key=lambda cell: cell.rmse)
    assert (ranked[0].frechet or 0) < (ranked[-1].frechet or 0)


def test_json_round_trip_and_what_is_not_a_comparison() -> None:
    assert Comparison.from_json(measured().to_json()) == measured()
    for text in ("{", "[]", '{"model": 1}', '{"cells": [{"what": 1}], "calls": []}'):
        with pytest.raises(ValueError, match="not a comparison"):
            Comparison.from_json(text)


def test_intervals_and_typical_errors() -> None:
    text = markdown(measured())
    assert "Typical error (median over samples" in text
    for cell in measured().cells:
        assert cell.interval is not None and cell.median is not None
        assert cell.interval[0] < cell.rmse < cell.interval[1] and 0 < cell.median <= 1.5 * cell.rmse
    shown = every_cell(measured()).splitlines()
    cell = min(measured().cells, key=lambda cell: (cell.asked, cell.rmse))
    assert cell.interval is not None and "| 95 % interval | median |" in shown[0]
    assert f"| {cell.rmse:.5f} | {cell.interval[0]:.4f} to {cell.interval[1]:.4f} | {cell.median:.4f} |" in shown[2]


def test_the_typical_error_is_that_of_the_variant_that_is_best_at_it() -> None:
    base = dataclasses.replace(next(cell for cell in measured().cells if not cell.learned), asked=3, calls=3)
    steady = dataclasses.replace(base, solver="a", group="A", rmse=0.2, median=0.15)
    jumpy = dataclasses.replace(steady, solver="b", rmse=0.3, median=0.02)
    older = dataclasses.replace(steady, solver="c", rmse=0.4, median=None)
    text = markdown(dataclasses.replace(measured(), calls=(3,), cells=(steady, jumpy, older)))
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert "| A | **0.2000** |" in tables[0] and "| A | **0.0200** |" in tables[1]


def test_files_from_before_intervals_are_read_and_shown() -> None:
    parts = json.loads(measured().to_json())
    for cell in parts["cells"]:
        del cell["median"], cell["interval"], cell["training"]
    old = Comparison.from_json(json.dumps(parts))
    assert {(cell.median, cell.interval, cell.training) for cell in old.cells} == {(None, None, None)}
    assert "Typical error" not in markdown(old) and f"| {old.cells[0].rmse:.5f} |  |  |" in every_cell(old)


def test_markdown_marks_the_best_of_each_column() -> None:
    c = measured()
    table = markdown(c).split("\n\n")[1].splitlines()
    assert table[0] == "| sequential calls | 3 | 4 | 5 |" and table[2].startswith("| **ours** (learned) |")
    for column, calls in enumerate((3, 4, 5)):
        found = [row.split("|")[column + 2].strip() for row in table[2:]]
        best = min(cell.rmse for cell in c.cells if cell.asked == calls)
        assert [text for text in found if text.startswith("**")] == [f"**{best:.4f}**"]
    starred = [row for row in table if "*" in row.replace("**", "")]
    assert all(row.split("|")[1].strip() in ("Heun", "DPM-Solver-2") for row in starred)


def test_equal_evaluations_compare_a_table_with_as_many_calls_of_the_others() -> None:
    c = measured()
    table = c.best(by_evaluations, 8, "ours")
    rival = c.best(by_evaluations, 8, "UniPC")
    assert table is not None and (table.calls, table.evaluations) == (5, 8)
    assert rival is not None and (rival.calls, rival.evaluations) == (8, 8)
    assert c.best(by_asked, 8, "ours") is None
    assert "| evaluations | 5 | 8 |" in markdown(c)


def test_files_and_plots(tmp_path: Path) -> None:
    paths = write_comparison(measured(), tmp_path)
    plots = {f"pareto{name}.png" for name in ("", "_calls", "_evaluations", "_time")}
    assert {path.name for path in paths} == {"comparison.json", "comparison.md", *plots}
    assert Comparison.from_json((tmp_path / "comparison.json").read_text()) == measured()
    assert "## Every solver" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths if path.suffix == ".png")


def test_curves_are_lower_envelopes_and_labels_keep_their_distance() -> None:
    for cost in costs(measured()):
        for curve in curves(measured(), cost):
            assert all(a[0] <= b[0] and a[1] > b[1] for a, b in zip(curve.points, curve.points[1:], strict=False))
    places = spread([0.5, 0.5, 0.51, 0.0, 1.0, 0.02], 0.05)
    assert sorted(range(6), key=places.__getitem__)[-1] == 4 and min(places) >= 0 and max(places) <= 1
    ordered = sorted(places)
    assert all(b - a >= 0.05 - 1e-6 for a, b in zip(ordered, ordered[1:], strict=False))


def test_a_solver_far_beyond_the_picture_leaves_the_labels_in_it() -> None:
    """Heun, slow and far away, as it is with few calls on stiff models."""
    far = {"Heun": {"seconds": 1e3, "rmse": 1e2}}
    cells = tuple(dataclasses.replace(cell, **far.get(cell.group, {})) for cell in measured().cells)
    figure = pareto_figure(dataclasses.replace(measured(), cells=cells), costs(measured()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        labels = [text.get_window_extent() for text in axes.texts]
        assert "Heun" in [text.get_text() for text in axes.texts]
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in labels)


def test_families_are_names_without_their_count_of_calls() -> None:
    def families(*names: str, calls: Sequence[int], family: str = "") -> dict[str, str]:
        config = {"family": family} if family else {}
        tables = [dataclasses.replace(of_calls(n), provenance=Provenance(config=config)) for n in calls]
        return family_names(dict(zip(names, tables, strict=True)))

    assert families("epd-3", "epd-5", "s4s_calls7", "x2", calls=(3, 5, 7, 2)) == {
        "epd-3": "epd", "epd-5": "epd", "s4s_calls7": "s4s_calls7", "x2": "x2",
    }  # fmt: skip
    both = {"3-calls": "learned", "5-calls": "learned"}
    assert families("3-calls", "5-calls", "x", calls=(3, 5, 4)) == both | {"x": "x"}
    assert families("a/3-calls", "a/5-calls", calls=(3, 5)) == {"a/3-calls": "a", "a/5-calls": "a"}


def test_a_row_holds_one_table_at_each_count_of_calls_all_of_one_structure() -> None:
    def kept(names: Sequence[str], tables: Sequence[epd.Table]) -> bool:
        families = family_names(dict(zip(names, tables, strict=True)))
        return all(name == family for name, family in families.items())

    assert kept(["v1", "v2"], [of_calls(3), of_calls(3)])  # two runs of as many calls
    assert kept(["v1", "v2"], [of_calls(3), of_calls(5)])  # a version is no count of calls
    assert kept(["x-3", "x_3"], [of_calls(3), of_calls(3)])
    origins = [Provenance(config={"family": name}) for name in ("epd", "dense")]
    mixed = [dataclasses.replace(of_calls(n), provenance=own) for n, own in zip((3, 4), origins, strict=True)]
    assert kept(["run3", "run4"], mixed)


def test_a_solver_that_diverges_is_left_out_and_not_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    class Blowing(epd.GaussianMixture):
        """Not finite where only a second-order step of two calls looks: nowhere that Euler goes."""

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            out = super().__call__(x, sigma)
            return out * math.nan if float(torch.as_tensor(sigma).max()) == self.sigma_min and len(x) == 8 else out

    model = Blowing(torch.zeros(1, 1, 2, 2), 0.5, sigma_min=0.02, sigma_max=20.0)
    # Heun evaluates at sigma_min itself. The reference is solved in the other batch size.
    counted = compare(model, {}, (4,), samples=9, batch=9, tuning=8, solvers=["Euler", "Heun"], features=flat)
    assert {cell.solver for cell in counted.cells} == {"Euler"}
    assert "finite on no schedule" in caplog.text


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="all at least 1"):
        compare(toy_mixture(), {}, (0,))
    with pytest.raises(ValueError, match="no solver is named 'Hoin'"):
        compare(toy_mixture(), {}, (3,), samples=4, solvers=["Hoin"])
    with pytest.raises(ValueError, match="seed = 1073741821 with samples = 4: tables are learned on the noise"):
        compare(toy_mixture(), {}, (3,), samples=4, seed=2**30 - 3)


def test_counting_counts() -> None:
    """Sequential calls are those of the solver, also where each point takes a call of its own."""
    for answer in (epd.batched, epd.serial):
        counting = Counting(answer(lambda x, sigma: x))
        for points in (1, 3):
            counting(epd.Ask(torch.zeros(points, 5, 1), torch.ones(points).double()))
        assert (counting.calls, counting.points) == (2, 4)


def test_without_tables_there_is_no_table_of_evaluations() -> None:
    only = dataclasses.replace(measured(), cells=tuple(c for c in measured().cells if not c.learned))
    assert "total evaluations" not in markdown(only) and "sequential calls" in markdown(only)


@pytest.mark.parametrize(("typed", "meant"), [("euler", "Euler"), ("heun", "Heun"), ("ipndm", "iPNDM")])
def test_a_solver_that_is_named_otherwise_is_hinted_at(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"is named '{typed}': perhaps you meant '{meant}'; groups are Euler / DDIM, "):
        compare(toy_mixture(), {}, (3,), samples=4, solvers=[typed])
