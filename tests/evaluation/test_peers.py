"""Peers in a comparison: chosen by name, measured like hand-made solvers, their cost recorded and not claimed."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.counting import Counted
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Model
from epd.distill.config import DistillConfig
from epd.distill.gits import LATER, gits_of
from epd.distill.pas import Pas, Truth, pas_of, truth_of
from epd.evaluation import peers as room
from epd.evaluation.batches import CountingRows
from epd.evaluation.compare import compare
from epd.evaluation.comparison import Cell, Comparison, by_evaluations, every_cell, markdown
from epd.evaluation.handmade import candidate_schedules, handmade
from epd.evaluation.peers import PICARD, chosen, peers
from epd.solvers.exact import converged
from epd.solvers.picard import picard
from epd.solvers.registry import Ends
from epd.solvers.rules import ipndm
from epd.solvers.walk import Rule

SAMPLES, TUNING = 24, 8
TABLE = epd.Table([20.0, 2.0, 0.02], [[0.3, 0.7]] * 2, [[0.5, 0.5]] * 2)


def counted() -> Counted:
    toy = toy_mixture()
    return Counted(toy.means.reshape(5, *toy.shape), 0.5, sigma_min=toy.sigma_min, sigma_max=toy.sigma_max, name="toy")


def measure(
    solvers: Sequence[str], calls: Sequence[int], model: Model | None = None, keep: Path | None = None
) -> Comparison:
    return compare(
        model or toy_mixture(), {"ours": TABLE}, calls, SAMPLES, 8, dtype=torch.float64, tuning=TUNING,
        solvers=solvers, keep=keep,
    )  # fmt: skip


@functools.cache
def ends() -> Tensor:
    model = toy_mixture()
    noise = unit_noise(range(SAMPLES), model.shape, torch.float64)
    return converged(model, noise, (model.sigma_max, model.sigma_min), 1e-8, 1e-8)[-1]


def errors_to_the_end(x: Tensor) -> float:
    return float((x - ends()[: len(x)]).square().mean().sqrt())


def test_gits_is_the_best_rule_of_its_group_on_a_planned_schedule(tmp_path: Path) -> None:
    model = counted()
    comparison = measure(["GITS + Euler / DDIM"], (3,), model, tmp_path)
    gits = gits_of(toy_mixture(), Ends.of(toy_mixture()), torch.float64)
    noise = unit_noise(range(SAMPLES), model.shape, torch.float64)
    rules = {s.name: s for s in handmade("ve") if s.group == "Euler / DDIM"}
    cells = [cell for cell in comparison.cells if not cell.learned]
    assert [cell.asked for cell in cells] == [3, 6]  # 6 evaluations of the table, whose calls are 4
    for cell in cells:
        assert cell.calls == cell.evaluations == cell.asked and cell.training == gits.evaluations == 64 * 60
        assert cell.group == "GITS + Euler / DDIM" and cell.peer and not cell.learned

        def error(name: str, later: float, count: int, at: int = cell.asked) -> float:
            sigmas = gits.schedule(rules[name].steps(at), later)
            return errors_to_the_end(epd.solve(rules[name].rule(sigmas), toy_mixture(), noise[:count], sigmas))

        best = min(error(name, later, TUNING) for name in rules for later in LATER)
        name, later = cell.solver.removeprefix("GITS + "), float(cell.schedule.removeprefix("GITS "))
        assert error(name, later, TUNING) == pytest.approx(best, rel=1e-3)
        assert cell.rmse == pytest.approx(error(name, later, SAMPLES), rel=1e-3)
    assert "| GITS + Euler / DDIM (learned peer) |" in markdown(comparison) and "| 3,840 |" in every_cell(comparison)
    assert "DDIM was learned with 3,840 evaluations." in markdown(comparison)
    before = model.rows
    assert measure(["GITS + Euler / DDIM"], (3,), model, tmp_path).cells == comparison.cells
    assert model.rows - before < 64  # no teacher where all cells are there


def test_pas_is_the_best_corrected_rule_of_its_group_on_the_best_schedule() -> None:
    model, toy = counted(), toy_mixture()
    cells = [cell for cell in measure(["PAS + iPNDM"], (3,), model).cells if not cell.learned]
    assert [cell.asked for cell in cells] == [3, 6]
    noise = unit_noise(range(SAMPLES), toy.shape, torch.float64)
    schedules = candidate_schedules("ve", toy.sigma_min, toy.sigma_max)
    for cell in cells:
        found: dict[tuple[str, str], list[float]] = {}
        evaluations = 0
        for (name, make), order in itertools.product(schedules.items(), (2, 3, 4)):
            truth = truth_of(toy, make(cell.asked), torch.float64)
            learned = pas_of(toy, ipndm(order), truth)
            end = epd.solve(learned.rule(ipndm(order)), toy, noise, truth.sigmas)
            label = f"PAS + iPNDM-{order}", f"{name}, {learned.numbers} numbers"
            found[label] = [errors_to_the_end(end[:TUNING]), errors_to_the_end(end)]
            evaluations += learned.evaluations + truth.evaluations * (order == 2)  # a teacher for each schedule
        best = min(found, key=lambda key: found[key][0])
        assert (cell.solver, cell.schedule) == best and cell.rmse == pytest.approx(found[best][1], rel=1e-3)
        assert cell.calls == cell.evaluations == cell.asked and cell.training == evaluations and cell.peer


def test_a_rule_that_is_not_finite_has_no_coordinates(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pas_of(model: Model, rule: Rule, truth: Truth) -> Pas:
        tried.append(len(truth.sigmas) - 1)
        if len(tried) > 1:
            raise FloatingPointError("lost")
        return Pas((None,) * tried[0], 7)

    tried: list[int] = []
    monkeypatch.setattr(room, "pas_of", pas_of)
    with caplog.at_level(logging.INFO, logger="epd"):
        cells = [cell for cell in measure(["PAS + Euler / DDIM"], (3,)).cells if not cell.learned]
    assert [cell.asked for cell in cells] == [3] and "0 numbers" in cells[0].schedule  # none of the others, none at 6
    assert "PAS + Euler on polynomial 5 has no coordinates: lost" in caplog.text


def test_paradigms_stays_within_its_calls_and_says_how_many_rows_they_hold() -> None:
    comparison, model = measure(["ParaDiGMS"], (3, 5)), toy_mixture()
    cells = [cell for cell in comparison.cells if not cell.learned]
    assert [cell.asked for cell in cells] == [3, 5]
    for cell in cells:
        name, window, tolerance = (part.split()[-1] if i else part for i, part in enumerate(cell.schedule.split(", ")))
        make = candidate_schedules("ve", model.sigma_min, model.sigma_max)[name]
        parts = []
        for first in range(0, SAMPLES, 8):
            counting, noise = CountingRows(model), unit_noise(range(first, first + 8), model.shape, torch.float64)
            parts.append(picard(counting, noise, make(cell.steps), int(window), float(tolerance), cell.asked))
            assert counting.calls <= cell.calls <= cell.asked and counting.rows // 8 <= cell.evaluations
        assert cell.evaluations > cell.calls and cell.steps in {round(part * cell.asked) for part, _, _ in PICARD}
        assert cell.rmse == pytest.approx(errors_to_the_end(torch.cat(parts)), rel=1e-3)
        assert by_evaluations(cell) == cell.evaluations and cell.training is None and not cell.peer
    counts = ", ".join(f"{cell.evaluations} at {cell.asked}" for cell in cells)
    assert f"ParaDiGMS makes more evaluations than calls: {counts}." in markdown(comparison)
    assert all("*" not in line.replace("**", "") for line in markdown(comparison).splitlines() if "ParaDiGMS" in line)


def test_paradigms_that_is_not_finite_has_no_cell(caplog: pytest.LogCaptureFixture) -> None:
    class Blowing(epd.GaussianMixture):
        """Not finite for three points of each of four samples in one call."""

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            out = super().__call__(x, sigma)
            return out * math.nan if len(x) >= 12 else out

    toy = toy_mixture()
    model = Blowing(toy.means.reshape(5, *toy.shape), 0.5, sigma_min=toy.sigma_min, sigma_max=toy.sigma_max)
    assert {cell.solver for cell in compare(model, {}, (4,), 4, 4, solvers=["ParaDiGMS", "Euler"]).cells} == {"Euler"}
    assert "ParaDiGMS is finite on no schedule at 4 calls" in caplog.text


def tiny(name: str, calls: int) -> DistillConfig:
    return toy_config(
        **room.FAMILIES[name], calls=calls, pool=32, batch=32, validation=16, iterations=1, screening=1,
        schedule="polynomial",
    )  # fmt: skip


def test_trained_peers_are_learned_for_each_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path))
    assert room._config("LD3", 4) == DistillConfig(family="ld3", learn=("sigmas", "anchor_scale"), calls=4)
    monkeypatch.setattr(room, "_config", tiny)
    comparison = measure(["LD3"], (3,))
    cells = {cell.asked: cell for cell in comparison.cells if not cell.learned}
    assert sorted(cells) == [3, 6]
    for at, cell in cells.items():
        assert cell.calls == cell.evaluations == cell.steps == at and cell.peer
        assert cell.training is not None and cell.training > 48 * 100  # the teacher's alone
    assert "| LD3 (learned peer) |" in markdown(comparison)


def test_solvers_are_chosen_by_name_group_and_kind() -> None:
    known = handmade("ve")
    others = peers(known)
    methods = {"GITS", "PAS", "ParaDiGMS", "LD3", "S4S", "AMED"}
    assert {peer.method for peer in others} == methods

    def picked(*names: str) -> tuple[int, set[str]]:
        solvers, found = chosen(known, others, names or None)
        return len(solvers), {peer.method for peer in found}

    assert picked() == (len(known), {"GITS"})
    assert picked("hand-made") == (len(known), set()) and picked("peers") == (0, methods)
    assert picked("GITS + UniPC", "Heun AFS", "LD3") == (1, {"GITS", "LD3"})
    assert len(chosen(known, others, ["GITS"])[1]) == 5
    with pytest.raises(ValueError, match="perhaps you meant 'ParaDiGMS'"):
        chosen(known, others, ["paradigms"])


def test_tables_come_first_and_learned_peers_before_hand_made_ones() -> None:
    table = Cell("ours", "ours", True, 3, 3, 5, 2, "learned", 0.9, 1.0)
    euler = Cell("Euler", "Euler / DDIM", False, 3, 3, 3, 3, "log SNR", 0.1, 1.0)
    gits = Cell("GITS + Euler", "GITS + Euler / DDIM", False, 3, 3, 3, 3, "GITS 1", 0.5, 1.0, training=9)
    comparison = replace(measure(["Euler"], (3,)), calls=(3,), cells=(euler, gits, table))
    assert comparison.groups() == ["ours", "GITS + Euler / DDIM", "Euler / DDIM"]
    assert Comparison.from_json(comparison.to_json()).cells == comparison.cells
