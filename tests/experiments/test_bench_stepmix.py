"""The benchmark of StepMix: what is kept of episodes, cells that are made once, the sampler against plain solvers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epd.denoisers.noise import unit_noise
from epd.experiments.stepmix import __main__ as command
from epd.experiments.stepmix import cells, digits, page, pictures
from epd.experiments.stepmix.cells import Cell, Digits
from epd.rl.stepmix_episodes import History
from epd.rl.tabular_bounds import ExplorationBonus
from epd.solvers import rules
from epd.solvers.solve import solve


def always(setting: int) -> Any:  # noqa: ANN401
    return lambda step, changes: np.full(len(changes), setting)


def test_a_setting_throughout_is_a_plain_solver() -> None:
    sampler = digits.Sampler(0)
    noise = unit_noise(range(6), sampler.model.shape)
    full = sampler(always(0), 6)
    assert (full == 1).all() and torch.equal(sampler.ends, solve(rules.euler(), sampler.model, noise, sampler.sigmas))
    sampler.seed = 0
    one = sampler(always(2), 6)  # the slope of the first of three steps in all of them: a step three times as long
    coarse = solve(rules.euler(), sampler.model, noise, sampler.sigmas[:: digits.EACH])
    assert torch.allclose(sampler.ends, coarse, atol=1e-4)
    assert (one < 1).all() and sampler.seed == 6 and sampler.rmse() > 0.1


def test_each_run_is_as_if_it_were_alone() -> None:
    together, plan = digits.Sampler(0), np.random.default_rng(0).integers(0, 3, size=(4, 5))
    seen: list[np.ndarray] = []

    def choose(step: int, changes: Any) -> Any:  # noqa: ANN401
        seen.append(changes)
        return plan[step]

    qualities, ends = together(choose, 5), together.ends
    for b in range(5):
        alone = digits.Sampler(b)
        found = alone(lambda step, changes, b=b: plan[step, b : b + 1], 1)
        assert np.abs(found[0] - qualities[b]).max() < 1e-4
        assert float((alone.ends[0] - ends[b]).abs().max()) < 1e-4
    assert (seen[0] == 0).all() and (seen[1] > 0).all()


def test_what_is_kept_of_episodes() -> None:
    values, start = np.array([[1.0, 1, 2, 2] * 5, [2.0] * 20]), np.array([[2, 1, 0, 0] * 5, [2] * 20])
    rho = np.array([[0, 0.5, 1, 1] * 5, [0] * 20])
    history = History(values, values, start, rho, start == 0, np.array([3, 1]), np.array([1.5, 1.5]), np.zeros((2, 2)))
    kept = cells.told(history, np.array([2.0, 2.0]))
    assert kept["regret"] == [10, 0] and kept["regret_half"] == [6, 0] and kept["violations"] == [10, 0]
    assert kept["first_mixing"] == [1, None] and kept["first_pure"] == [2, None]
    assert (kept["at"][0], kept["at"][-1]) == (10, 20) and kept["cumulated"][-1] == 5
    assert kept["mixing"][0] == pytest.approx((2 * (0 + 0.75 + 1 + 1) + 0 + 0.75) / 20, abs=1e-6)
    assert page.below(kept) == "5.0" and page.broken(kept) == "5.0 (in 1 of 2 trials)"
    assert page.when([None, 3, 5]) == "5" and page.when([None, None, 5]) == "never"


SMALL: dict[str, Any] = {"episodes": 40, "trials": 2, "states": 2, "actions": 2, "steps": 2}


def test_cells_are_made_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # noqa: ANN401
    bonuses = (ExplorationBonus(), ExplorationBonus("both"))
    episodes = tuple(Cell(method, **SMALL) for method in cells.METHODS)
    by = {0.2: {c.method: c for c in episodes}}
    runs = (Digits(), *(Digits(bonus, 2) for bonus in bonuses))
    for module in (page, pictures, cells):
        for name, value in {
            "EPISODES": episodes, "BY_GAP": {ExplorationBonus(): by}, "BY_LENGTH": by, "BY_STATES": by,
            "BY_BONUS": {ExplorationBonus(): by[0.2]}, "DIGITS": runs,
            "BY_DATA": {b: {n: Cell(bonus=b, offline=n, **SMALL) for n in (9, 90)} for b in bonuses},
        }.items():  # fmt: skip
            monkeypatch.setattr(module, name, value, raising=False)
    data = [c for row in cells.BY_DATA.values() for c in row.values()]
    monkeypatch.setattr(cells, "CELLS", (*episodes, *data, *runs))
    for name, value in {"BATCH": 8, "MEASURED": 2, "JUDGED": 1, "REFERENCE": 13}.items():
        monkeypatch.setattr(digits, name, value)
    words = ["--out", str(tmp_path / "out"), "--docs", str(tmp_path)]
    assert command.main(words) == 0
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/*.json")}
    assert len(made) == 5 + 4 + 3 and not cells.missing(tmp_path / "out", [])
    one = json.loads((tmp_path / "out" / episodes[0].path).read_text())
    assert one["environment"]["numpy"] and one["settings"]["bonus"]["kind"] == "hoeffding"
    assert one["violations"] == [0, 0]
    (tmp_path / "out" / episodes[1].path).unlink()
    assert cells.missing(tmp_path / "out", ["random/step", "digits"]) == []
    with pytest.raises(ValueError, match="no cell's path begins with 'ramdom': paths begin with "):
        cells.missing(tmp_path / "out", ["digits", "ramdom"])
    assert command.main(words) == 0
    again = {p: p.stat().st_mtime_ns for p in made}
    assert {p for p in made if made[p] != again[p]} == {tmp_path / "out" / episodes[1].path}
    assert command.main([*words, "--print", "--draw"]) == 0
    said = capsys.readouterr().out
    assert "| StepMix | 0 |" in said and "of 2 batches of" in said
    for name in ("episodes", "gap", "bonus", "sizes", "offline", "digits"):
        assert (tmp_path / f"stepmix_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_measured_is_said() -> None:
    assert all(render({}).startswith("*Not measured yet.*") for render in page.RENDERERS.values())
